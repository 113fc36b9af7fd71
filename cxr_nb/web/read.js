// A PNG, JPEG or DICOM file becomes gray pixels and a verdict, then a square as the network takes it.
// The same steps as cxr_nb.data.images; the judge of pixels is in gate.js.
import { readDicom } from './dicom.js'
import { Refusal, checkSize } from './refusal.js'

const MARKS = { // First bytes of what is read, and of what is known and not read
  png: '89504e470d0a1a0a', jpeg: 'ffd8ff', GIF: '47494638', TIFF: '49492a00', 'TIFF file': '4d4d002a', BMP: '424d', PDF: '25504446',
  'ZIP archive': '504b0304', 'gzip archive': '1f8b', WebP: '52494646', NIfTI: '5c010000', 'JPEG 2000': '0000000c6a50',
}
const SUFFIXES = { png: 'png', jpg: 'jpeg', jpeg: 'jpeg', dcm: 'dicom', dicom: 'dicom' }
const TRUNCATED = 'broken file (image file is truncated)'

function kindOf(bytes) {
  const word = String.fromCharCode(...bytes.slice(128, 132))
  if (word === 'DICM' || bytes[0] === 8 && bytes[1] === 0 && bytes[3] === 0 && bytes.length >= 132) return 'dicom'
  const hex = [...bytes.slice(0, 8)].map((b) => b.toString(16).padStart(2, '0')).join('')
  return Object.keys(MARKS).find((kind) => hex.startsWith(MARKS[kind])) ?? ''
}

// What the chunks of a PNG say: its size, its kind of pixels, and the compressed rows
function readChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const png = { rows: [], frames: 1, whole: false }
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at)
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8))
    const start = at + 8
    if (start + length + 4 > bytes.length) break
    if (name === 'IHDR') Object.assign(png, { width: view.getUint32(start), height: view.getUint32(start + 4), bits: bytes[start + 8], colours: bytes[start + 9], interlaced: bytes[start + 12] })
    if (name === 'acTL') png.frames = view.getUint32(start)
    if (name === 'IDAT') png.rows.push(bytes.subarray(start, start + length))
    if (name === 'IEND') png.whole = true
    at = start + length + 4
  }
  if (!png.width) throw new Refusal('broken', 'broken file: no PNG in spite of its first bytes')
  return png
}

// Width and height of a JPEG, from the header of its frame
function jpegSize(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  for (let at = 2; at + 9 <= bytes.length && bytes[at] === 255;) {
    const segment = bytes[at + 1]
    const isFrame = segment >= 0xc0 && segment <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(segment)
    if (isFrame) return [view.getUint16(at + 7), view.getUint16(at + 5)]
    at += segment === 255 ? 1 : 2 + view.getUint16(at + 2)
  }
  throw new Refusal('broken', 'broken file: no JPEG in spite of its first bytes')
}

function jpegEnds(bytes) { // or is its last marker missing?
  for (let at = bytes.length - 2; at > 1; at--) if (bytes[at] === 0xff && bytes[at + 1] === 0xd9) return true
  return false
}

// A gray PNG of 16 bits: a canvas would keep 8 of them, and not know how many the radiograph has
async function deepGray(png) {
  if (png.interlaced) throw new Refusal('broken', 'an interlaced PNG of 16 bits, which is not read in the browser')
  const flow = new Blob(png.rows).stream().pipeThrough(new DecompressionStream('deflate'))
  const rows = new Uint8Array(await new Response(flow).arrayBuffer())
  const stride = 2 * png.width
  if (rows.length < (stride + 1) * png.height) throw new Refusal('truncated', TRUNCATED)
  const values = new Uint16Array(png.width * png.height)
  let above = new Uint8Array(stride)
  for (let y = 0; y < png.height; y++) {
    const line = unfiltered(rows.subarray(y * (stride + 1), (y + 1) * (stride + 1)), above)
    for (let x = 0; x < png.width; x++) values[y * png.width + x] = line[2 * x] << 8 | line[2 * x + 1]
    above = line
  }
  return eightBits(values)
}

function unfiltered(row, above) {
  const line = row.slice(1)
  for (let i = 0; i < line.length; i++) {
    const left = i < 2 ? 0 : line[i - 2]
    const corner = i < 2 ? 0 : above[i - 2]
    line[i] += [0, left, above[i], left + above[i] >> 1, paeth(left, above[i], corner)][row[0]]
  }
  return line
}

function paeth(left, above, corner) {
  const [a, b, c] = [Math.abs(above - corner), Math.abs(left - corner), Math.abs(left + above - 2 * corner)]
  return a <= b && a <= c ? left : b <= c ? above : corner
}

// The smallest usual depth that holds the largest value becomes 255
function eightBits(values) {
  let most = 0
  for (const value of values) most = Math.max(most, value)
  const bits = [8, 10, 12, 14, 16].find((bits) => most < 2 ** bits)
  return Uint8Array.from(values, (value) => Math.min(Math.floor(value * (255 / (2 ** bits - 1)) + .5), 255))
}

async function canvasPixels(blob) {
  let bitmap
  try { bitmap = await createImageBitmap(blob, { colorSpaceConversion: 'none', premultiplyAlpha: 'none' }) }
  catch { throw new Refusal('broken', 'broken file (its pixels cannot be decoded)') }
  const { width, height } = bitmap
  const canvas = new OffscreenCanvas(width, height)
  const context = canvas.getContext('2d', { colorSpace: 'srgb', willReadFrequently: true, alpha: false }) // transparent is black
  context.drawImage(bitmap, 0, 0)
  bitmap.close()
  const rgba = context.getImageData(0, 0, width, height, { colorSpace: 'srgb' }).data
  canvas.width = canvas.height = 0 // gives its memory back now
  return { width, height, rgba, notes: [] }
}

async function readRaster(file, bytes, kind, limits) {
  if (kind === 'jpeg') {
    checkSize(...jpegSize(bytes), limits)
    if (!jpegEnds(bytes)) throw new Refusal('truncated', TRUNCATED)
    return canvasPixels(file)
  }
  const png = readChunks(bytes)
  checkSize(png.width, png.height, limits)
  if (png.frames > 1) throw new Refusal('frames', `${png.frames} pictures in one file`)
  if (!png.whole) throw new Refusal('truncated', TRUNCATED)
  if (png.bits !== 16 || png.colours !== 0) return canvasPixels(file)
  try { return { width: png.width, height: png.height, gray: await deepGray(png), notes: [] } }
  catch (error) {
    if (error instanceof Refusal) throw error
    throw new Refusal('broken', 'broken file (its pixels cannot be decoded)')
  }
}

function grayFrom(rgba) { // ITU-R 601-2 luma in whole numbers, as Pillow has it
  const gray = new Uint8Array(rgba.length / 4)
  for (let i = 0; i < gray.length; i++) gray[i] = rgba[4 * i] * 19595 + rgba[4 * i + 1] * 38470 + rgba[4 * i + 2] * 7471 + 0x8000 >> 16
  return gray
}

function colourShare({ width, height, rgba }, least = 40) { // looked at on a grid of about 256 x 256
  const step = Math.max(1, Math.floor(Math.min(width, height) / 256))
  const [columns, rows] = [Math.floor(width / step), Math.floor(height / step)]
  let coloured = 0
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const at = 4 * (Math.floor((y + .5) * height / rows) * width + Math.floor((x + .5) * width / columns))
      const [r, g, b] = [rgba[at], rgba[at + 1], rgba[at + 2]]
      if (Math.max(r, g, b) - Math.min(r, g, b) >= least) coloured++
    }
  }
  return coloured / (columns * rows)
}

export function percentile(sorted, share) {
  const at = share * (sorted.length - 1)
  const [low, high] = [sorted[Math.floor(at)], sorted[Math.ceil(at)]]
  return low + (high - low) * (at - Math.floor(at))
}

// Reasons that need no judge, as in cxr_nb.data.gate
function reasonsOf({ width, height, gray, rgba }, limits) {
  const colour = rgba ? colourShare({ width, height, rgba }) : 0
  const reasons = []
  const say = (code, text, refuse = false) => reasons.push({ code, text, refuse })
  if (colour >= limits.coloured) say('colour', 'is a picture in colours; give the gray image without overlays', true)
  else if (colour >= limits.annotated) say('annotated', 'has coloured marks; give the image without them if there is one')
  if (Math.max(width, height) > 1.8 * Math.min(width, height)) say('long', 'is much longer than wide; check that it is one whole image')
  const some = []
  const [down, right] = [Math.max(1, Math.floor(height / 128)), Math.max(1, Math.floor(width / 128))]
  for (let y = 0; y < height; y += down) for (let x = 0; x < width; x += right) some.push(gray[y * width + x])
  some.sort((a, b) => a - b)
  if (percentile(some, .99) - percentile(some, .01) < 16) say('low_contrast', 'has hardly any contrast; export it with its display window')
  return reasons
}

// The image of a file, or a Refusal: { width, height, gray, kind, reasons }
export async function readImage(file, { limits, notes }) {
  if (!file.size) throw new Refusal('empty', 'empty file')
  if (file.size > limits.max_bytes) throw new Refusal('too_large', `more than ${Math.floor(limits.max_bytes / 1e6)} MB`)
  const buffer = await file.arrayBuffer()
  const bytes = new Uint8Array(buffer)
  const kind = kindOf(bytes)
  if (!Object.values(SUFFIXES).includes(kind)) throw new Refusal('not_image', kind ? `not an image that is read here (${kind})` : 'not an image')
  const image = kind === 'dicom' ? readDicom(buffer, limits) : await readRaster(file, bytes, kind, limits)
  image.gray ??= grayFrom(image.rgba)
  if (image.gray.every((value) => value === image.gray[0])) throw new Refusal('constant', `every pixel is ${image.gray[0]}: nothing to see`)
  const suffix = file.name.toLowerCase().split('.').pop()
  if ((SUFFIXES[suffix] ?? kind) !== kind) image.notes.push('extension')
  const facts = image.notes.map((code) => ({ code, text: notes[code], refuse: false }))
  return { ...image, kind, reasons: [...facts, ...reasonsOf(image, limits)], rgba: undefined }
}

// Centred on a black square and resized, by area when shrinking and linearly when growing, as OpenCV does it
export function toSquare({ width, height, gray }, size) {
  const side = Math.max(width, height)
  const square = new Uint8Array(side * side)
  const [top, left] = [(side - height) >> 1, (side - width) >> 1]
  for (let y = 0; y < height; y++) square.set(gray.subarray(y * width, (y + 1) * width), (y + top) * side + left)
  if (side === size) return square
  return side > size ? shrunk(square, side, size) : grown(square, side, size)
}

// For each pixel of the result: the first pixel below it, and the share that it takes of that one and the next ones
export function areaWeights(side, size) {
  const scale = side / size
  return Array.from({ length: size }, (_, i) => {
    const [from, to] = [i * scale, (i + 1) * scale]
    const first = Math.floor(from + 1e-9)
    const weights = []
    for (let j = first; j < side && j < to - 1e-9; j++) weights.push((Math.min(j + 1, to) - Math.max(j, from)) / scale)
    return { first, weights }
  })
}

function shrunk(square, side, size) {
  const weights = areaWeights(side, size)
  const narrow = new Float64Array(side * size)
  for (let y = 0; y < side; y++) {
    weights.forEach(({ first, weights }, x) => {
      let sum = 0
      for (let k = 0; k < weights.length; k++) sum += weights[k] * square[y * side + first + k]
      narrow[y * size + x] = sum
    })
  }
  const small = new Uint8Array(size * size)
  const rounded = side === 2 * size ? (value) => Math.floor(value + .5) : evenly
  weights.forEach(({ first, weights }, y) => {
    for (let x = 0; x < size; x++) {
      let sum = 0
      for (let k = 0; k < weights.length; k++) sum += weights[k] * narrow[(first + k) * size + x]
      small[y * size + x] = rounded(sum)
    }
  })
  return small
}

export function evenly(value) { // to the nearest whole number, and from the middle to the even one
  const low = Math.floor(value)
  const rest = value - low
  if (Math.abs(rest - .5) < 1e-6) return low + (low & 1)
  return rest < .5 ? low : low + 1
}

// In whole numbers, rounded where OpenCV rounds
function grown(square, side, size) {
  const places = Array.from({ length: size }, (_, i) => {
    const place = Math.min(Math.max((i + .5) * side / size - .5, 0), side - 1)
    const low = Math.floor(place)
    const share = Math.round((place - low) * 2048)
    return { low, high: Math.min(low + 1, side - 1), share }
  })
  const large = new Uint8Array(size * size)
  places.forEach((row, y) => places.forEach((column, x) => {
    const mix = (line) => square[line * side + column.low] * (2048 - column.share) + square[line * side + column.high] * column.share
    const [above, below] = [mix(row.low) >> 4, mix(row.high) >> 4]
    large[y * size + x] = ((above * (2048 - row.share) >> 16) + (below * row.share >> 16) + 2) >> 2
  }))
  return large
}
