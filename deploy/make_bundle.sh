#!/usr/bin/env bash
# Puts the archive of deploy/bundle.bzl together; Bazel runs it.
#
#   make_bundle.sh MANIFEST STATUS cuda|cpu SHARED_DATA OUT
#
# MANIFEST   a line for each file: kind, path or name, what to do with it (tabs between)
# STATUS     Bazel's stable status: the commit
# SHARED_DATA  folder with models/ (stories260K and aidreams260K, and both with -hf) and glue/sst2, or empty: the
#            end-to-end tests make a model of their own
set -euo pipefail

manifest=$1 status=$2 variant=$3 shared_data=$4 out=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/qst
runfiles=$root/tests/runfiles/qst
mkdir -p "$root"/{bin,lib,deploy} "$runfiles"

# From the system, whatever it is: the C library's own, of which any from glibc 2.36 on serves, and the driver's.
is_system_library() { [[ "$1" =~ ^(linux-vdso|ld-linux-x86-64|lib(c|m|pthread|dl|rt|resolv|util|cuda))\.so ]]; }
# Too large to carry (750 MB): found on the machine by cuda_env.sh.
is_cuda_library() { [[ "$1" =~ ^lib(cublasLt|cublas|nccl|cudart)\.so ]]; }
is_elf() { [[ -f "$1" && ! -L "$1" && "$(head -c 4 "$1" | tail -c 3)" == ELF ]]; }

declare -A program_of
while IFS=$'\t' read -r kind path name; do
  case "$kind" in
    program)
      program=${name##*/}
      program_of[$name]=$program
      if [[ "$variant" == cuda && "$program" == qst-worker ]]; then
        mkdir -p "$root/libexec"
        cp -L "$path" "$root/libexec/$program"
        cat > "$root/bin/$program" <<'SH'
#!/bin/sh
# Finds CUDA's libraries on this machine, then runs the worker.
here=$(dirname "$(readlink -f "$0")")
. "$here/../lib/cuda_env.sh"
qst_find_cuda_libraries "$here/../lib/cuda_libraries" || exit 1
exec "$here/../libexec/qst-worker" "$@"
SH
      else
        cp -L "$path" "$root/bin/$program"
      fi
      chmod 755 "$root"/bin/*
      ;;
    script)
      mkdir -p "$root/${name%/*}"
      cp -L "$path" "$root/$name"
      chmod 755 "$root/$name"
      ;;
    gpu_test|benchmark|e2e_test) printf '%s\t%s\n' "$path" "$name" >> "$root/tests/$kind.list" ;;
  esac
done < "$manifest"
mv "$root/deploy/cuda_env.sh" "$root/lib/cuda_env.sh"

while IFS=$'\t' read -r kind path name; do
  [[ "$kind" == file && "$name" != ../* && ! -e "$runfiles/$name" ]] || continue
  mkdir -p "$runfiles/$(dirname "$name")"
  if [[ -n "${program_of[$name]:-}" ]]; then
    ln -s "$(realpath --relative-to="$runfiles/$(dirname "$name")" "$root/bin")/${program_of[$name]}" "$runfiles/$name"
  else
    cp -L "$path" "$runfiles/$name"
    chmod u+w "$runfiles/$name"
  fi
done < "$manifest"

if [[ -n "$shared_data" ]]; then
  mkdir -p "$root/data/models" "$root/data/glue/sst2"
  for model in stories260K-hf stories260K aidreams260K-hf aidreams260K; do
    cp -rL "$shared_data/models/$model" "$root/data/models/"
  done
  for part in train dev; do head -n 300 "$shared_data/glue/sst2/$part.tsv" > "$root/data/glue/sst2/$part.tsv"; done
  chmod -R u+w "$root/data"
fi

# The quickstart's texts.
if [[ -r /usr/share/games/fortunes/politics ]]; then
  mkdir -p "$root/data/fortunes"
  for topic in computers definitions knghtbrd platitudes politics science songs-poems zippy; do
    cp -L "/usr/share/games/fortunes/$topic" "$root/data/fortunes/"
  done
fi

# Own programs: smaller, and with the way to lib/ in them. RPATH and not RUNPATH: it also serves the libraries' own needs.
: > "$work/needed"
while IFS= read -r -d '' file; do
  is_elf "$file" || continue
  chmod u+w "$file"
  ldd "$file" >> "$work/needed"
  strip --strip-unneeded "$file"
  patchelf --force-rpath --set-rpath "\$ORIGIN/$(realpath --relative-to="${file%/*}" "$root/lib")" "$file"
done < <(find "$root/bin" "$root/tests" $([[ -d "$root/libexec" ]] && echo "$root/libexec") -type f -print0)

: > "$root/lib/cuda_libraries"
# Loaded when a job is spread over GPUs, so no program lists it.
[[ "$variant" != cuda ]] || echo 'libnccl.so.2 optional' >> "$root/lib/cuda_libraries"
while read -r library path; do
  if is_cuda_library "$library"; then
    echo "$library" >> "$root/lib/cuda_libraries"
  elif ! is_system_library "$library"; then
    [[ -r "$path" ]] || { echo "make_bundle.sh: library $library was not found" >&2; exit 1; }
    cp -L "$path" "$root/lib/$library"
    if readelf -d "$root/lib/$library" | grep -qE '\((RPATH|RUNPATH)\)'; then
      patchelf --remove-rpath "$root/lib/$library"
    fi
  fi
done < <(sed -nE 's/^\s*(\S+) => (\S+).*/\1 \2/p' "$work/needed" | sort -u)

commit=$(sed -n 's/^STABLE_COMMIT //p' "$status")
printf 'commit %s\nvariant %s\n' "${commit:-unknown}" "$variant" > "$root/VERSION"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - qst | gzip -9n > "$out"
size=$(stat -c %s "$out")
if ((size > 60 << 20)); then
  echo "make_bundle.sh: the archive has $size bytes, more than 60 MiB; the largest files:" >&2
  tar -tvzf "$out" | sort -k3,3nr | sed -n 1,10p >&2
  exit 1
fi
