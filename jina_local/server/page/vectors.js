// Arithmetic on vectors, and the files they are downloaded as.

/** Cosines of every row of `a` with every row of `b`. A vector without length has none: NaN. */
export function cosines(a, b) {
  const lengths = (rows) => rows.map((row) => Math.hypot(...row));
  const [ofA, ofB] = [lengths(a), lengths(b)];
  return a.map((row, i) => b.map((other, j) => dot(row, other) / (ofA[i] * ofB[j])));
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** How each kind of file is written: from the facts of the request, its texts and their vectors. */
export const FORMATS = { json, csv, npy };

function json(facts, texts, rows) {
  const data = rows.map((embedding, index) => ({ index, text: texts[index], embedding }));
  return new Blob([JSON.stringify({ ...facts, data })], { type: "application/json" });
}

/** As `embed --format csv --keep text` writes it. */
function csv(_facts, texts, rows) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = rows.map((row, index) => [index, quoted(texts[index]), ...row].join());
  const header = ["index", "text", ...rows[0].map((_, i) => `d${i}`)].join();
  return new Blob([[header, ...lines, ""].join("\n")], { type: "text/csv" });
}

/** NumPy's format 1.0: float32, little-endian, in C order. */
function npy(_facts, _texts, rows) {
  const shape = `(${rows.length}, ${rows[0].length})`;
  const described = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`;
  const header = described.padEnd(Math.ceil((described.length + 11) / 64) * 64 - 11) + "\n";
  const numbers = new DataView(new ArrayBuffer(4 * rows.length * rows[0].length));
  rows.flat().forEach((value, i) => numbers.setFloat32(4 * i, value, true));
  const magic = [0x93, ..."NUMPY".split("").map((char) => char.charCodeAt(0)), 1, 0];
  return new Blob([new Uint8Array([...magic, header.length & 255, header.length >> 8]), header, numbers]);
}
