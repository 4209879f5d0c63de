// Writes the hash of everything the page was built from beside it, so that a test that has no Node
// can tell whether the committed build is current (tests/test_serve_page_build.py counts the same).
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const SOURCES = ["index.html", "package-lock.json", "public", "src", "vite.config.ts"];

function filesIn(path) {
  if (!statSync(path).isDirectory()) return [path];
  return readdirSync(path).flatMap((name) => filesIn(join(path, name)));
}

const hash = createHash("sha256");
const files = SOURCES.flatMap(filesIn)
  .map((file) => file.replaceAll("\\", "/"))
  .filter((file) => !file.includes(".test."))
  .sort();
for (const file of files) {
  const content = createHash("sha256").update(readFileSync(file)).digest("hex");
  hash.update(`${file} ${content}\n`);
}
writeFileSync("../mull/serve/page/stamp.txt", `${hash.digest("hex")}\n`);
