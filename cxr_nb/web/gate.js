// Is this an upright frontal chest radiograph? The steps and the small network of cxr_nb.data.gate; its numbers are in gate.json.
import { areaWeights, evenly, percentile } from './read.js'

const SIDE = 64 // of the small copy that is looked at
const HALF = SIDE / 2
const [WARN, REFUSE] = [.8, .3] // Probabilities of an upright chest radiograph
const NAMED = 2 // Log odds that an image must have, turned back, before it is said how it lies
const count = (n) => Array.from({ length: n }, (_, i) => i)
const sum = (values) => values.reduce((a, b) => a + b, 0)
const mean = (values) => sum(values) / values.length
const dot = (a, b) => a.reduce((total, value, i) => total + value * b[i], 0)
const sign = (i) => i % 2 ? -1 : 1

// A small copy, from its darkest gray to its brightest, 0 to 1
function thumb({ width, height, gray }) {
  const step = Math.max(1, Math.floor(Math.min(width, height) / 768))
  const columns = areaWeights(Math.ceil(width / step), SIDE)
  const rows = areaWeights(Math.ceil(height / step), SIDE)
  const small = rows.flatMap((row) => columns.map((column) => evenly(cell(gray, width, step, row, column))))
  const low = Math.min(...small)
  const range = Math.max(Math.max(...small) - low, 1e-6)
  return small.map((value) => (value - low) / range)
}

function cell(gray, width, step, row, column) { // the mean gray below one pixel of the copy
  let total = 0
  row.weights.forEach((down, i) => column.weights.forEach((right, j) => {
    total += down * right * gray[(row.first + i) * step * width + (column.first + j) * step]
  }))
  return total
}

// Grays of the halved copy by rank, -1 to 1; equal ones share theirs
function ranks(a) {
  const halved = count(HALF * HALF).map((i) => {
    const at = 2 * Math.floor(i / HALF) * SIDE + 2 * (i % HALF)
    return Math.round((a[at] + a[at + 1] + a[at + SIDE] + a[at + SIDE + 1]) / 4 * 1e4)
  })
  const order = count(halved.length).sort((i, j) => halved[i] - halved[j])
  const ranked = new Array(halved.length)
  for (let from = 0, to; from < order.length; from = to) {
    for (to = from + 1; to < order.length && halved[order[to]] === halved[order[from]];) to++
    for (let k = from; k < to; k++) ranked[order[k]] = (from + to - 1) / 1023 - 1
  }
  return ranked
}

// Cosine waves of the ranks (DCT-II, orthonormal), as rows of numbers
function cosines(r) {
  const table = count(HALF).map((k) => count(HALF).map((n) => Math.sqrt((k ? 2 : 1) / HALF) * Math.cos(Math.PI * (2 * n + 1) * k / SIDE)))
  const rows = count(HALF).map((y) => r.slice(y * HALF, (y + 1) * HALF))
  const along = rows.map((row) => table.map((wave) => dot(wave, row)))
  return table.map((wave) => count(HALF).map((x) => sum(wave.map((value, y) => value * along[y][x]))))
}

// The slow waves in the four rotations, and the log strength of the finer ones
function slowAndFine(r) {
  const waves = cosines(r)
  const slow = count(100).map((i) => [Math.floor(i / 10), i % 10]).filter(([y, x]) => y + x > 0 && y + x <= 13)
  const turns = [(y, x) => waves[y][x], (y, x) => sign(y) * waves[x][y], (y, x) => sign(x + y) * waves[y][x], (y, x) => sign(x) * waves[x][y]]
  const turned = turns.map((turn) => slow.map(([y, x]) => turn(y, x)))
  const strength = (values) => dot(values, values)
  const fine = strength(waves.flat()) - strength(turned[0])
  return { turned, fine: Math.log(1e-3 + Math.max(fine, 0)) }
}

function rotated(a) { // by a quarter, against the clock
  return a.map((_, i) => a[(i % SIDE) * SIDE + SIDE - 1 - Math.floor(i / SIDE)])
}

// Log mean steps between neighbours in 4 x 4 fields, across and then along
function edges(a) {
  const middle = mean(a)
  const spread = Math.sqrt(mean(a.map((value) => (value - middle) ** 2))) + 1e-3
  return [[0, 1], [1, 0]].flatMap(([down, right]) => {
    const fields = new Array(16).fill(0)
    a.forEach((value, i) => {
      const [y, x] = [Math.floor(i / SIDE), i % SIDE]
      if (y + down < SIDE && x + right < SIDE) fields[4 * (y >> 4) + (x >> 4)] += Math.abs(a[i + down * SIDE + right] - value) / spread / 256
    })
    return fields.map((field) => Math.log(field + .01) + 2)
  })
}

// What the judge knows of an image after undoing each of the eight ways in which it can lie
function features(image) {
  const a = thumb(image)
  const { turned, fine } = slowAndFine(ranks(a))
  const sorted = [...a].sort((i, j) => i - j)
  const dark = [.02, .1, .25, .5, .75, .9, .98].map((share) => 4 * percentile(sorted, share) - 2)
  const bright = dark.map((value) => -value).reverse()
  const copies = [a]
  while (copies.length < 4) copies.push(rotated(copies.at(-1)))
  const steps = copies.map(edges)
  return [[1, dark], [-1, bright]].flatMap(([side, shares]) => turned.map((waves, k) => [...waves.map((wave) => side * wave / 4), fine, ...shares, ...steps[k]]))
}

function score(seen, gate) { // log odds of an upright chest radiograph
  const away = gate.centre.map((value, i) => seen[i] - value)
  const squares = gate.whiten[0].map((_, j) => sum(away.map((value, i) => value * gate.whiten[i][j])) ** 2)
  const middle = squares.length >> 1
  const distances = [squares.slice(0, middle), squares.slice(middle)].map((part) => Math.log(mean(part) + 1e-6))
  const x = [...seen, ...distances].map((value, i) => (value - gate.mean[i]) / gate.scale[i])
  const hidden = gate.b1.map((bias, j) => Math.max(bias + sum(x.map((value, i) => value * gate.w1[i][j])), 0))
  return dot(hidden, gate.w2) + gate.b2
}

// Reasons against an image: { code, text, refuse }
export function turnReasons(image, gate) {
  const scores = features(image).map((seen) => score(seen, gate))
  const odds = [...scores, 0].map((value) => Math.exp(value - Math.max(...scores, 0)))
  const upright = odds[0] / sum(odds)
  if (upright >= WARN) return []
  const refuse = upright < REFUSE
  const best = scores.indexOf(Math.max(...scores))
  if (best === 0 || scores[best] < NAMED) return [{ code: 'not_chest', text: 'does not look like a frontal chest radiograph; give the whole image, alone and upright', refuse }]
  const reasons = []
  if (best >= 4) reasons.push({ code: 'inverted', text: 'looks inverted, with dark bones; invert its grays', refuse })
  const turn = 90 * (best % 4)
  if (turn) reasons.push({ code: `rotated_${turn}`, text: `looks turned by ${turn} degrees clockwise; turn it back`, refuse })
  return reasons
}
