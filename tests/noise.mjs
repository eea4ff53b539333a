// The noise of flatq/noise.py in a browser's script, written from its docstring alone.

function mulhi(a, b) {
  const al = a & 0xffff, ah = a >>> 16, bl = b & 0xffff, bh = b >>> 16;
  const mid = ah * bl + ((al * bl) >>> 16);
  const rest = (mid & 0xffff) + al * bh;
  return (ah * bh + (mid >>> 16) + (rest >>> 16)) >>> 0;
}

function philox(c0, c1, c2, c3, k0, k1) {
  for (let round = 0; round < 10; round++) {
    [c0, c1, c2, c3] = [
      mulhi(0xcd9e8d57, c2) ^ c1 ^ k0,
      Math.imul(0xcd9e8d57, c2),
      mulhi(0xd2511f53, c0) ^ c3 ^ k1,
      Math.imul(0xd2511f53, c0),
    ];
    k0 = (k0 + 0x9e3779b9) | 0;
    k1 = (k1 + 0xbb67ae85) | 0;
  }
  return [c0, c1, c2, c3];
}

const uniform = (word) => ((word >>> 0) + 0.5) * 2 ** -32;

// One image's Float32Array of `size` values; seed is a BigInt below 2n ** 64n, the others are numbers.
export function normal(seed, index, draw, size, stream) {
  const low = Number(seed & 0xffffffffn), high = Number(seed >> 32n);
  const out = new Float32Array(size);
  for (let j = 0; 4 * j < size; j++) {
    const r = philox(j, draw, index, stream, low, high);
    for (const pair of [0, 2]) {
      const radius = Math.sqrt(-2 * Math.log(uniform(r[pair])));
      const angle = 2 * Math.PI * uniform(r[pair + 1]);
      out.set([radius * Math.cos(angle), radius * Math.sin(angle)].slice(0, size - 4 * j - pair), 4 * j + pair);
    }
  }
  return out;
}
