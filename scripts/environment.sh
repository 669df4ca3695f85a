# Sourced by demo.sh and test.sh: goes to the repository's root, where an environment is active. Without one it makes
# .venv and uses that; conda's base environment does not count, since nothing should be installed into it.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${VIRTUAL_ENV:-}" ] && { [ -z "${CONDA_PREFIX:-}" ] || [ "${CONDA_DEFAULT_ENV:-base}" = base ]; }; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    source .venv/bin/activate
fi

# install FILE...: what the requirements files ask for, once for each version of a file.
install() {
    local file stamp
    for file in "$@"; do
        stamp="$(python -c 'import sys; print(sys.prefix)')/.stylesdf-${file%.txt}"
        if ! cmp -s "$file" "$stamp"; then
            echo "Installing what $file asks for; PyTorch alone is large, so the first time takes minutes."
            python -m pip install --quiet --no-compile -r "$file"
            cp "$file" "$stamp"
        fi
    done
}
