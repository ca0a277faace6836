import preact from "@preact/preset-vite";
import { copyFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vite";
import { viteSingleFile } from "vite-plugin-singlefile";

const at = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

/** The finished page goes where Python packages it: users need no Node. */
function shipped(): Plugin {
  return {
    name: "shipped",
    apply: "build",
    closeBundle: () => copyFileSync(at("dist/index.html"), at("../counterplay/viewing/page/index.html")),
  };
}

export default defineConfig({
  plugins: [preact({ devToolsEnabled: false }), viteSingleFile({ removeViteModuleLoader: true }), shipped()],
  build: { target: "es2022", reportCompressedSize: false, cssMinify: true },
  server: { proxy: { "/api": "http://127.0.0.1:8787" } },
});
