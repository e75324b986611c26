// Arithmetic on vectors, and the files they are downloaded as.

/** Cosines of every row of `a` with every row of `b`. */
export function cosines(a, b) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  return a.map((x) => b.map((y) => dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y))));
}

/** How each kind of file is written: from the facts of the request, its texts and their vectors. */
export const FORMATS = {
  json(facts, texts, rows) {
    const data = rows.map((embedding, index) => ({ index, text: texts[index], embedding }));
    return new Blob([JSON.stringify({ ...facts, data })], { type: "application/json" });
  },
  /** As `embed --format csv --keep text` writes it. */
  csv(_facts, texts, rows) {
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const header = ["index", "text", ...rows[0].map((_, i) => `d${i}`)].join();
    const lines = rows.map((row, index) => [index, quoted(texts[index]), ...row].join());
    return new Blob([[header, ...lines, ""].join("\n")], { type: "text/csv" });
  },
  /** NumPy's format 1.0: float32, little-endian, row after row. */
  npy(_facts, _texts, rows) {
    const shape = `(${rows.length}, ${rows[0].length})`;
    const described = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`;
    const header = `${described.padEnd(Math.ceil((described.length + 11) / 64) * 64 - 11)}\n`;
    const start = [0x93, ..."NUMPY".split("").map((char) => char.charCodeAt(0)), 1, 0, header.length, 0];
    const numbers = new DataView(new ArrayBuffer(4 * rows.flat().length));
    rows.flat().forEach((value, i) => numbers.setFloat32(4 * i, value, true));
    return new Blob([new Uint8Array(start), header, numbers]);
  },
};
