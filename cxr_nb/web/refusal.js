// What cannot be read, in the words of Python's reasons: a code, a sentence, and the mend that model.json has for the code.
export class Refusal extends Error {
  constructor(code, reason) {
    super(reason)
    this.code = code
  }
}

export function checkSize(width, height, limits) {
  const size = `${width}x${height}`
  const [short, long] = [Math.min(width, height), Math.max(width, height)]
  if (width * height > limits.max_pixels) throw new Refusal('too_large', `${size}: more than ${limits.max_pixels.toLocaleString('en')} pixels`)
  if (short < limits.min_side) throw new Refusal('too_small', `${size}: smaller than ${limits.min_side} pixels`)
  if (long > limits.max_aspect * short) throw new Refusal('aspect', `${size}: more than ${limits.max_aspect} times as long as wide`)
}
