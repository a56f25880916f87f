// node unpack_browser.mjs BIN FOLDER: the packed browser and its libraries in BIN as FOLDER/chromium.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { brotliDecompressSync } from "node:zlib";

const [bin, folder] = process.argv.slice(2).map((path) => resolve(path));
const unpack = (name) => brotliDecompressSync(readFileSync(join(bin, name)));

for (const name of ["al2023.tar.br", "swiftshader.tar.br", "fonts.tar.br"]) {
  const target = join(folder, name.split(".")[0]);
  mkdirSync(target, { recursive: true });
  execFileSync("tar", ["-x", "-C", target], { input: unpack(name) });
}
writeFileSync(join(folder, "chromium.bin"), unpack("chromium.br"), { mode: 0o755 });
const libraries = [join(folder, "al2023", "lib"), join(folder, "swiftshader")].join(":");
const script = `#!/bin/sh
LD_LIBRARY_PATH="${libraries}" exec "${join(folder, "chromium.bin")}" "$@"
`;
// Last and at once: a browser that is there is whole.
writeFileSync(join(folder, ".chromium"), script, { mode: 0o755 });
renameSync(join(folder, ".chromium"), join(folder, "chromium"));
