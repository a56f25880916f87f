#!/bin/sh
# A Chromium for the tests of the report pages, as FOLDER/chromium: the one on the PATH, else that of the npm
# package @sparticuz/chromium. Where there is neither a browser nor npm it says so; those tests are then skipped.
set -eu
folder=$1
here=$(dirname "$0")
mkdir -p "$folder"
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if found=$(command -v "$name"); then
    ln -sf "$found" "$folder/chromium"
    exit 0
  fi
done
if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
  echo "no Chromium and no npm here: the tests that open report pages in a browser will be skipped" >&2
  exit 0
fi
if ! npm install --silent --no-audit --no-fund --prefix "$folder" @sparticuz/chromium@153.0.0; then
  echo "npm could not install a Chromium: the tests that open report pages in a browser will be skipped" >&2
  exit 0
fi
node "$here/unpack_browser.mjs" "$folder/node_modules/@sparticuz/chromium/bin" "$folder"
