# Sourced by the scripts that train: makes the paths that they take absolute, for these are given relative to where the
# user is, and goes to the repository's root.
for given in PHOTOS DATASET FEATURES START DECODER; do
    case ${!given:-} in
        '' | /*) ;;
        *) printf -v "$given" %s "$PWD/${!given}" ;;
    esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# share IMAGES GPUS: prints how many of the images of a step each GPU gets. A training needs two on each.
share() {
    if ! [[ $2 =~ ^[1-9][0-9]{0,2}$ ]] || [ $(($1 % $2)) != 0 ] || [ $(($1 / $2)) -lt 2 ]; then
        echo "GPUS=$2: must be a whole number that divides the $1 images of a step, so that each gets two or more" >&2
        return 2
    fi
    echo $(($1 / $2))
}
