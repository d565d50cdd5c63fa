#!/bin/sh
# What Bazel stamps the bundle with: the commit that it was built from, "-dirty" if files differ from it.
commit=$(git rev-parse --short=12 HEAD 2>/dev/null) || commit=unknown
[ "$commit" = unknown ] || [ -z "$(git status --porcelain --untracked-files=no 2>/dev/null)" ] || commit=$commit-dirty
echo "STABLE_COMMIT $commit"
