// An uncompressed, little-endian DICOM file becomes gray pixels, or is refused by its header; as cxr_nb.data.dicom does it.
import { Refusal, checkSize } from './refusal.js'

const TAGS = {
  '00020010': 'TransferSyntaxUID', '00080060': 'Modality', '00180015': 'BodyPartExamined', '00185101': 'ViewPosition',
  '00200020': 'PatientOrientation', '00540220': 'ViewCodeSequence', '00080104': 'CodeMeaning',
  '00280002': 'SamplesPerPixel', '00280004': 'PhotometricInterpretation', '00280006': 'PlanarConfiguration',
  '00280008': 'NumberOfFrames', '00280010': 'Rows', '00280011': 'Columns', '00280100': 'BitsAllocated',
  '00280101': 'BitsStored', '00280103': 'PixelRepresentation', '00280120': 'PixelPaddingValue',
  '00280121': 'PixelPaddingRangeLimit', '00281050': 'WindowCenter', '00281051': 'WindowWidth',
  '00281052': 'RescaleIntercept', '00281053': 'RescaleSlope', '00281056': 'VOILUTFunction',
  '00283000': 'ModalityLUTSequence', '00283010': 'VOILUTSequence', '00283002': 'LUTDescriptor', '00283006': 'LUTData',
  '7fe00010': 'PixelData',
}
const SEQUENCES = new Set(['ViewCodeSequence', 'ModalityLUTSequence', 'VOILUTSequence'])
const LONG = new Set(['OB', 'OD', 'OF', 'OL', 'OV', 'OW', 'SQ', 'SV', 'UC', 'UN', 'UR', 'UT', 'UV']) // 4 bytes of length
const UNDEFINED = 0xffffffff
const IMPLICIT = '1.2.840.10008.1.2'
const EXPLICIT = '1.2.840.10008.1.2.1'

// The tags at `at` and where they end. Inside of an item of unknown length they end with its delimiter.
function readTags(view, at, end, explicit, nested = false) {
  const tags = {}
  while (at + 8 <= end) {
    const { tag, vr, length, start } = readHead(view, at, explicit)
    if (tag === 'fffee00d' || tag === 'fffee0dd') return { tags, at: start }
    const name = TAGS[tag]
    const isSequence = vr === 'SQ' || SEQUENCES.has(name) || length === UNDEFINED
    if (name === 'PixelData') {
      tags.PixelData = { start, length: Math.min(length, end - start) }
      if (!nested || length === UNDEFINED) return { tags, at: end }
      at = start + length // an icon, in an item that may have more behind it
      continue
    }
    if (isSequence) {
      const inside = readItems(view, start, length === UNDEFINED ? end : start + length, explicit && vr !== 'UN')
      if (name) tags[name] = inside.items
      at = length === UNDEFINED ? inside.at : start + length
    } else {
      if (name) tags[name] = { vr, bytes: bytesOf(view, start, length) }
      at = start + length
    }
  }
  return { tags, at }
}

function readHead(view, at, explicit) {
  const hex = (n) => n.toString(16).padStart(4, '0')
  const tag = hex(view.getUint16(at, true)) + hex(view.getUint16(at + 2, true))
  if (tag.startsWith('fffe') || !explicit) return { tag, vr: '', length: view.getUint32(at + 4, true), start: at + 8 }
  const vr = String.fromCharCode(view.getUint8(at + 4), view.getUint8(at + 5))
  if (!LONG.has(vr)) return { tag, vr, length: view.getUint16(at + 6, true), start: at + 8 }
  return { tag, vr, length: view.getUint32(at + 8, true), start: at + 12 }
}

function readItems(view, at, end, explicit) {
  const items = []
  while (at + 8 <= end) {
    const { tag, length, start } = readHead(view, at, explicit)
    if (tag === 'fffee0dd') return { items, at: start }
    if (tag !== 'fffee000') throw new Refusal('broken', 'broken file (DICOM that cannot be read)')
    const item = readTags(view, start, length === UNDEFINED ? end : start + length, explicit, true)
    items.push(item.tags)
    at = length === UNDEFINED ? item.at : start + length
  }
  return { items, at }
}

function bytesOf(view, start, length) { return new Uint8Array(view.buffer, view.byteOffset + start, length) }

function wordsOf(tags, name) {
  if (!tags[name]?.bytes) return []
  const text = new TextDecoder('latin1').decode(tags[name].bytes).replace(/\0/g, ' ')
  return text.split('\\').map((word) => word.trim().toUpperCase()).filter((word) => word)
}
function textOf(tags, name) { return wordsOf(tags, name).join(' ') }
function shortOf(tags, name, otherwise = 0, at = 0, signed = false) {
  const bytes = tags[name]?.bytes
  if (!bytes || bytes.length < 2 * at + 2) return otherwise
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  return signed ? view.getInt16(2 * at, true) : view.getUint16(2 * at, true)
}
function numberOf(tags, name) {
  const words = wordsOf(tags, name)
  return words.length ? Number(words[0]) : NaN
}

function parse(buffer) {
  const view = new DataView(buffer)
  const hasPreamble = view.byteLength > 132 && view.getUint32(128) === 0x4449434d
  if (!hasPreamble) {
    const explicit = /[A-Z]/.test(String.fromCharCode(view.getUint8(4))) && /[A-Z]/.test(String.fromCharCode(view.getUint8(5)))
    return { view, ...readTags(view, 0, view.byteLength, explicit) }
  }
  const length = view.getUint32(140, true) // of the rest of group 2, which is always explicit
  const meta = readTags(view, 144, 144 + length, true).tags
  const syntax = textOf(meta, 'TransferSyntaxUID')
  if (syntax === '1.2.840.10008.1.2.1.99') throw new Refusal('syntax', 'a deflated DICOM file')
  if (syntax === '1.2.840.10008.1.2.2') throw new Refusal('syntax', 'a big-endian DICOM file, which is not read in the browser')
  return { view, syntax, ...readTags(view, 144 + length, view.byteLength, syntax !== IMPLICIT) }
}

function checkModality(tags, limits) {
  const modality = textOf(tags, 'Modality')
  if (limits.modalities.includes(modality)) return
  const named = /^[A-Z]{2,8}$/.test(modality) ? `modality ${modality}` : modality ? 'another modality' : 'no modality given'
  throw new Refusal('modality', `${named}, not ${limits.modalities.join(', ')}`)
}

function checkView(tags) {
  const part = textOf(tags, 'BodyPartExamined')
  if (part && !/CHEST|THORA|TORAX|LUNG/.test(part)) throw new Refusal('body_part', 'another body part than the chest, says its header')
  const view = textOf(tags, 'ViewPosition')
  const codes = (tags.ViewCodeSequence ?? []).map((item) => textOf(item, 'CodeMeaning')).join(' ')
  const codedLateral = codes.includes('LATERAL') && !codes.includes('DECUB')
  const fromSide = /^[AP]/.test(textOf(tags, 'PatientOrientation'))
  if (fromSide || codedLateral || /^([LR]L|LAT.*|.*LATERAL.*|[LR] ?LAT)$/.test(view)) throw new Refusal('lateral', 'a lateral view, says its header')
  if (/^([LR][AP]O|[LR]LO|OBL.*)$/.test(view) || codes.includes('OBLIQUE')) throw new Refusal('oblique', 'an oblique view, says its header')
}

function checkPicture(tags, syntax, limits) {
  const frames = numberOf(tags, 'NumberOfFrames')
  const [width, height] = [shortOf(tags, 'Columns'), shortOf(tags, 'Rows')]
  const bits = shortOf(tags, 'BitsAllocated')
  const samples = shortOf(tags, 'SamplesPerPixel')
  const colours = textOf(tags, 'PhotometricInterpretation')
  if (frames > 1) throw new Refusal('frames', `${frames} frames`)
  if (!width || !height) throw new Refusal('no_image', 'a DICOM file without an image')
  checkSize(width, height, limits)
  const stored = shortOf(tags, 'BitsStored', bits)
  if (![8, 16].includes(bits) || stored < 1 || stored > bits) throw new Refusal('bits', `${bits} bits a pixel, not 8 or 16`)
  const known = samples === 1 && colours.startsWith('MON') || samples === 3 && /^(RGB|YBR)/.test(colours)
  if (!known) throw new Refusal('photometric', 'neither gray nor RGB')
  if (!tags.PixelData) throw new Refusal('no_image', 'a DICOM file without an image')
  if (syntax && ![IMPLICIT, EXPLICIT].includes(syntax)) throw new Refusal('syntax', 'compressed pixels, which are not read in the browser')
  if (samples === 3 && (bits !== 8 || !colours.startsWith('RGB'))) throw new Refusal('photometric', `colours as ${colours}, which are not read in the browser`)
  if (width * height * samples * bits / 8 > tags.PixelData.length) throw new Refusal('truncated', 'broken file (it ends before its pixels do)')
}

function storedValues(view, tags) {
  const bits = shortOf(tags, 'BitsAllocated')
  const unused = 32 - shortOf(tags, 'BitsStored', bits)
  const signed = shortOf(tags, 'PixelRepresentation') === 1
  const values = new Int32Array(shortOf(tags, 'Columns') * shortOf(tags, 'Rows'))
  for (let i = 0; i < values.length; i++) {
    const value = bits === 8 ? view.getUint8(tags.PixelData.start + i) : view.getUint16(tags.PixelData.start + 2 * i, true)
    values[i] = signed ? value << unused >> unused : value << unused >>> unused
  }
  return values
}

// A lookup table of the file: numbers in, its entries out
function lookUp(item, values, signed) {
  const entries = shortOf(item, 'LUTDescriptor') || 65536
  const first = shortOf(item, 'LUTDescriptor', 0, 1, signed)
  const bits = shortOf(item, 'LUTDescriptor', 0, 2)
  const narrow = item.LUTData.bytes.length < 2 * entries
  const entry = (i) => narrow ? item.LUTData.bytes[i] : shortOf(item, 'LUTData', 0, i)
  const shown = values.map((value) => entry(Math.min(Math.max(Math.round(value) - first, 0), entries - 1)))
  return { shown, bits }
}

function windowed(tags, values) {
  let [center, width] = [numberOf(tags, 'WindowCenter'), numberOf(tags, 'WindowWidth')]
  const shape = textOf(tags, 'VOILUTFunction') || 'LINEAR'
  if (shape === 'SIGMOID' && width > 0) return values.map((value) => 1 / (1 + Math.exp(-4 * (value - center) / width)))
  if (shape === 'LINEAR' && width >= 1) [center, width] = [center - .5, width - 1]
  else if (shape !== 'LINEAR_EXACT' || !(width > 0)) return null
  return values.map((value) => value <= center - width / 2 ? 0 : value > center + width / 2 ? 1 : (value - center) / width + .5)
}

// Brightness 0 to 1 of stored values by the file's own window or table, else from the lowest to the highest
function brightness(tags, stored) {
  const signed = shortOf(tags, 'PixelRepresentation') === 1
  const [slope, intercept] = [numberOf(tags, 'RescaleSlope'), numberOf(tags, 'RescaleIntercept')]
  let values = stored
  if (tags.ModalityLUTSequence?.length) values = lookUp(tags.ModalityLUTSequence[0], stored, signed).shown
  else if (Number.isFinite(slope) && Number.isFinite(intercept)) values = stored.map((value) => value * slope + intercept)
  const [low, high] = extent(values)
  const full = values.map((value) => (value - low) / Math.max(high - low, 1e-9))
  const hasTable = tags.VOILUTSequence?.length > 0
  if (!hasTable && !wordsOf(tags, 'WindowCenter').length) return { bright: full, notes: [] }
  let shown
  if (hasTable) {
    const found = lookUp(tags.VOILUTSequence[0], values, signed)
    shown = found.shown.map((value) => value / (2 ** found.bits - 1))
  } else shown = windowed(tags, values)
  shown = shown?.map((value) => Math.min(Math.max(value, 0), 1))
  const [darkest, brightest] = shown ? extent(shown) : [0, 0]
  const usable = shown?.every(Number.isFinite) && brightest - darkest > 1 / 16
  return usable ? { bright: shown, notes: [] } : { bright: full, notes: ['window'] }
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity]
  for (const value of values) {
    low = Math.min(low, value)
    high = Math.max(high, value)
  }
  return [low, high]
}

function grayOf(tags, stored) {
  const [lowest, highest] = extent(stored)
  const there = new Uint8Array(highest - lowest + 1)
  for (const value of stored) there[value - lowest] = 1
  const signed = shortOf(tags, 'PixelRepresentation') === 1
  const padding = shortOf(tags, 'PixelPaddingValue', NaN, 0, signed)
  const limit = shortOf(tags, 'PixelPaddingRangeLimit', padding, 0, signed)
  const isPadding = (value) => value >= Math.min(padding, limit) && value <= Math.max(padding, limit)
  const values = []
  for (let i = 0; i < there.length; i++) if (there[i] && !isPadding(i + lowest)) values.push(i + lowest)
  const { bright, notes } = values.length ? brightness(tags, values) : { bright: [], notes: [] }
  const inverted = textOf(tags, 'PhotometricInterpretation') === 'MONOCHROME1'
  const table = new Uint8Array(there.length) // padding stays black
  values.forEach((value, i) => { table[value - lowest] = Math.floor((inverted ? 1 - bright[i] : bright[i]) * 255 + .5) })
  return { gray: Uint8Array.from(stored, (value) => table[value - lowest]), notes }
}

function positionNotes(tags) {
  const letters = wordsOf(tags, 'PatientOrientation').map((word) => word[0]).join('')
  const notes = []
  if (letters === 'RF') notes.push('mirrored')
  else if (letters && letters !== 'LF') notes.push(/^([LR][HF]|[HF][LR])$/.test(letters) ? 'turned' : 'position')
  const frontal = ['', 'AP', 'PA', 'LLD', 'RLD', 'PA/AP', 'AP/PA']
  if (!frontal.includes(textOf(tags, 'ViewPosition'))) notes.push('view')
  return notes
}

function rgbOf(view, tags, pixels) {
  const planes = shortOf(tags, 'PlanarConfiguration') === 1
  const rgba = new Uint8ClampedArray(4 * pixels).fill(255)
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) rgba[4 * i + c] = view.getUint8(tags.PixelData.start + (planes ? c * pixels + i : 3 * i + c))
  }
  return rgba
}

// { width, height, gray, notes }, or { width, height, rgba, notes } for a file in colours
export function readDicom(buffer, limits) {
  try {
    const { view, syntax, tags } = parse(buffer)
    checkModality(tags, limits)
    checkView(tags)
    checkPicture(tags, syntax, limits)
    const [width, height] = [shortOf(tags, 'Columns'), shortOf(tags, 'Rows')]
    if (shortOf(tags, 'SamplesPerPixel') === 3) return { width, height, rgba: rgbOf(view, tags, width * height), notes: [] }
    const { gray, notes } = grayOf(tags, storedValues(view, tags))
    return { width, height, gray, notes: [...notes, ...positionNotes(tags)] }
  } catch (error) {
    if (error instanceof Refusal) throw error
    throw new Refusal('broken', 'broken file (DICOM that cannot be read)')
  }
}
