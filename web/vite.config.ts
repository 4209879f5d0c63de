import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

// What a first visit loads, in gzipped bytes of JavaScript; the build says the figure and fails above it.
const INITIAL_SCRIPT_LIMIT = 250_000;

export default defineConfig(async ({ mode }) => ({
  base: "/",
  oxc: { jsx: { runtime: "automatic" as const, importSource: "preact" } },
  build: {
    outDir: "../mull/serve/page",
    emptyOutDir: true,
    target: "es2022",
    sourcemap: false,
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0, // data: addresses would widen the content policy
  },
  server: {
    port: 5173,
    // The API is that of a running `mull up`; MULL_URL names another one.
    proxy: Object.fromEntries(
      ["/api", "/v1", "/health", "/metrics", "/docs"].map((path) => [
        path,
        { target: process.env.MULL_URL ?? "http://127.0.0.1:8642", changeOrigin: true },
      ]),
    ),
  },
  plugins: [
    onlyWoff2(),
    initialScriptSize(),
    ...(mode === "mock" ? [(await import("./dev/mock.ts")).mock()] : []),
  ],
}));

/** KaTeX names three formats of every font; browsers that can run this page all read the first. */
function onlyWoff2(): Plugin {
  return {
    name: "only-woff2",
    enforce: "pre",
    transform(code, id) {
      if (!id.includes("katex") || !id.includes(".css")) return null;
      return code.replaceAll(/,\s*url\([^)]*\.(?:woff|ttf)\)\s*format\(["'][a-z]+["']\)/g, "");
    },
  };
}

function initialScriptSize(): Plugin {
  return {
    name: "initial-script-size",
    writeBundle(_options, bundle) {
      const seen = new Set<string>();
      const visit = (name: string) => {
        const part = bundle[name];
        if (seen.has(name) || part?.type !== "chunk") return;
        seen.add(name);
        part.imports.forEach(visit);
      };
      for (const [name, part] of Object.entries(bundle)) {
        if (part.type === "chunk" && part.isEntry) visit(name);
      }
      let bytes = 0;
      for (const name of seen) {
        const part = bundle[name];
        if (part?.type === "chunk") bytes += gzipSync(part.code).length;
      }
      console.log(`initial JavaScript: ${(bytes / 1000).toFixed(1)} kB gzipped`);
      if (bytes > INITIAL_SCRIPT_LIMIT) {
        this.error(`initial JavaScript is ${bytes} bytes, the limit is ${INITIAL_SCRIPT_LIMIT}`);
      }
    },
  };
}
