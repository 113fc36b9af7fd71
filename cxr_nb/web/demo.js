// A file goes in; the verdict, findings against thresholds and a heatmap come out. All of it in this browser.
import * as ort from './runtime/ort.wasm.min.mjs'
import { turnReasons } from './gate.js'
import { readImage, toSquare } from './read.js'
import { Refusal } from './refusal.js'

const STATUS = {
  ok: 'The file can be read as a radiograph.',
  warning: 'Read, with a warning.',
  refused: 'Refused: this file gets no probabilities.',
}
const HEAT = [[0, 0, 4], [33, 12, 74], [87, 16, 110], [138, 34, 106], [188, 55, 84], [228, 90, 49], [249, 142, 9], [249, 203, 53], [252, 255, 164]] // inferno
const $ = (id) => document.getElementById(id)
const pretty = (finding) => finding.replaceAll('_', ' ')

let model // what model.json says
let gate // the numbers of the judge of pixels
let session // of onnxruntime
let shown // the last answer: { pixels, probabilities, maps }
let latest = 0 // number of the last file that was given

async function start() {
  model = await (await fetch('model.json')).json()
  gate = await (await fetch('gate.json')).json()
  describe()
  ort.env.wasm.wasmPaths = new URL('./runtime/', import.meta.url).href
  ort.env.wasm.numThreads = 1 // more need headers that a plain server does not send
  session = await ort.InferenceSession.create('model.onnx', { executionProviders: ['wasm'] })
  say('ready', 'Ready.')
  $('file').addEventListener('change', (event) => event.target.files[0] && answer(event.target.files[0]))
}

function describe() {
  $('card').textContent = model.card
  $('about').textContent = `${model.arch}, ${model.size} x ${model.size} pixels, trained on ${model.data ?? 'unnamed data'}. ${model.caveat ?? ''} ${model.use} Runtime: ${model.runtime}.`
  $('told').hidden = !model.told.length
  $('told').textContent = `This network can be told ${model.told.join(', ')}; here they are unknown.`
  $('calibrated-choice').hidden = !model.calibration
  $('map-figure').hidden = !model.heatmaps
  $('no-map').hidden = model.heatmaps
  for (const name of model.findings) $('finding').add(new Option(pretty(name), name))
  for (const { file, finding } of model.examples) $('examples').append(exampleButton(file, finding))
}

function exampleButton(file, finding) {
  const button = document.createElement('button')
  button.textContent = finding ? `with ${pretty(finding)}` : 'without a finding'
  button.addEventListener('click', async () => answer(new File([await (await fetch(file)).blob()], file)))
  return button
}

function say(status, text, reasons = []) {
  const verdict = $('verdict')
  verdict.replaceChildren(Object.assign(document.createElement('strong'), { textContent: text }))
  verdict.dataset.codes = reasons.map((reason) => reason.code).join(' ')
  verdict.dataset.status = status
  if (!reasons.length) return
  const list = document.createElement('ul')
  for (const reason of reasons) list.append(Object.assign(document.createElement('li'), { textContent: reason.text }))
  verdict.append(list)
}

async function answer(file) {
  const number = ++latest
  if (!session) return
  say('busy', `Reading ${file.name}.`)
  $('answer').hidden = true
  try {
    const found = await judged(file)
    if (number !== latest) return // another file was given since
    shown = found
    say(found.reasons.length ? 'warning' : 'ok', found.reasons.length ? STATUS.warning : STATUS.ok, found.reasons)
    show()
  } catch (error) {
    if (number !== latest) return
    if (!(error instanceof Refusal)) say('failed', `This went wrong: ${error.message}`)
    else say('refused', STATUS.refused, error.reasons ?? [{ code: error.code, text: `${error.message}; ${model.mends[error.code]}` }])
  }
}

// What the network says of a file. Throws a Refusal
async function judged(file) {
  const image = await readImage(file, model)
  image.reasons.push(...turnReasons(image, gate))
  const refused = image.reasons.some((reason) => reason.refuse)
  if (refused) throw Object.assign(new Refusal('', ''), { reasons: image.reasons })
  const pixels = toSquare(image, model.size)
  const images = new ort.Tensor('uint8', pixels, [1, 1, model.size, model.size])
  const out = await session.run({ images })
  const found = { pixels, reasons: image.reasons, probabilities: [...out.probabilities.data] }
  if (out.maps) found.maps = { side: out.maps.dims[2], data: out.maps.data.slice() }
  images.dispose()
  for (const tensor of Object.values(out)) tensor.dispose()
  return found
}

// Probability, threshold and whether it is reached, for each finding, those that stand highest first
function findings() {
  const calibration = $('calibrated').checked ? model.calibration : null
  const rows = model.findings.map((name, i) => {
    const probability = shown.probabilities[i]
    const threshold = model.thresholds?.[name] ?? null
    const positive = threshold !== null && probability >= threshold
    const move = (p) => calibration && p !== null ? calibrated(p, calibration.slope[i], calibration.intercept[i]) : p
    return { name, positive, probability: move(probability), threshold: move(threshold) }
  })
  for (const row of rows) row.bar = row.threshold === null ? row.probability : row.probability / (row.probability + row.threshold)
  return rows.sort((a, b) => b.positive - a.positive || b.bar - a.bar)
}

function calibrated(p, slope, intercept) {
  const kept = Math.min(Math.max(p, 1e-7), 1 - 1e-7)
  return 1 / (1 + Math.exp(-(Math.log(kept / (1 - kept)) * slope + intercept)))
}

function show() {
  const rows = findings()
  $('bars').replaceChildren(...rows.map(barRow))
  const positive = rows.filter((row) => row.positive).map((row) => pretty(row.name))
  $('positives').textContent = !model.thresholds ? 'This network has no thresholds, so nothing is said to be positive.'
    : positive.length ? `Positive: ${positive.join(', ')}.` : `${model.none}: no probability reaches its threshold.`
  $('answer').hidden = false
  draw($('image'), shown.pixels, null)
  $('finding').value = rows[0].name
  showMap()
}

function barRow({ name, positive, probability, threshold, bar }) {
  const row = document.createElement('tr')
  row.className = positive ? 'positive' : ''
  Object.assign(row.dataset, { finding: name, probability, threshold, positive })
  const head = Object.assign(document.createElement('th'), { scope: 'row', textContent: pretty(name) })
  const track = Object.assign(document.createElement('div'), { className: 'bar' })
  const fill = document.createElement('i')
  fill.style.width = `${100 * bar}%`
  track.append(fill)
  if (threshold !== null) track.append(document.createElement('b'))
  const cells = [track, probability.toFixed(3), threshold === null ? 'none' : threshold.toFixed(3)]
  row.append(head, ...cells.map((cell) => {
    const td = document.createElement('td')
    td.append(cell)
    return td
  }))
  return row
}

function showMap() {
  if (!shown?.maps) return
  const { side, data } = shown.maps
  const i = model.findings.indexOf($('finding').value)
  draw($('map'), shown.pixels, stretched(data.subarray(i * side * side, (i + 1) * side * side), side, model.size))
}

// A map from 0 to 1 of its own range, at the size of the image: linear between the centres of its cells
function stretched(cells, side, size) {
  const low = Math.min(...cells)
  const range = Math.max(...cells) - low + 1e-7
  const at = Array.from({ length: size }, (_, i) => {
    const place = Math.min(Math.max((i + .5) * side / size - .5, 0), side - 1)
    return [Math.floor(place), Math.min(Math.floor(place) + 1, side - 1), place % 1]
  })
  const large = new Float32Array(size * size)
  at.forEach(([up, down, v], y) => at.forEach(([left, right, u], x) => {
    const above = cells[up * side + left] * (1 - u) + cells[up * side + right] * u
    const below = cells[down * side + left] * (1 - u) + cells[down * side + right] * u
    large[y * size + x] = (above * (1 - v) + below * v - low) / range
  }))
  const most = large.reduce((a, b) => Math.max(a, b), 1e-7)
  return large.map((value) => value / most)
}

// Gray pixels, with a map over them if there is one
function draw(canvas, pixels, map) {
  const size = canvas.width = canvas.height = model.size
  const picture = new ImageData(size, size)
  pixels.forEach((gray, i) => {
    const heat = map ? map[i] : 0
    const opacity = .75 * heat ** .7
    const colour = heatColour(heat)
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = (1 - opacity) * gray + opacity * colour[c]
    picture.data[4 * i + 3] = 255
  })
  canvas.getContext('2d').putImageData(picture, 0, 0)
}

function heatColour(value) { // between its two neighbours in the list
  const place = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1)
  const low = Math.min(Math.floor(place), HEAT.length - 2)
  return HEAT[low].map((colour, c) => colour + (HEAT[low + 1][c] - colour) * (place - low))
}

$('finding').addEventListener('change', showMap)
$('calibrated').addEventListener('change', show)
for (const name of ['dragover', 'dragleave', 'drop']) {
  $('drop').addEventListener(name, (event) => {
    event.preventDefault()
    $('drop').classList.toggle('over', name === 'dragover')
    if (name === 'drop' && event.dataTransfer.files.length) answer(event.dataTransfer.files[0])
  })
}
start().catch((error) => say('failed', `The page cannot start: ${error.message}. Write it anew with cxr-export --web.`))
