#!/usr/bin/env bash
# Builds the site of the documents:
#     bash scripts/site.sh           into site/
#     bash scripts/site.sh FOLDER    into FOLDER
# Any web server can serve the folder, and the pages can also be opened as files. A broken link ends it with exit code 1.
set -euo pipefail
folder=$(realpath -m "${1:-"$(dirname "$0")/../site"}")
source "$(dirname "$0")/environment.sh"
install requirements-docs.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Documents link to each other across folders, as they lie in the repository. So MkDocs gets them in that form.
mkdir "$work/pages"
find . -path './.*' -prune -o -path ./site -prune -o \( -name '*.md' -o -path './docs/images/*' -o -name site.css -o -name LICENSE \) \
    -type f -print0 | xargs -0 cp --parents -t "$work/pages"
cp docs/mkdocs.yml "$work"
NO_MKDOCS_2_WARNING=1 python -m mkdocs build --quiet --strict --config-file "$work/mkdocs.yml" --site-dir "$work/site"
mkdir -p "$folder"
cp -r "$work/site/." "$folder"
echo "The site is in $folder; index.html is its first page."
