#!/usr/bin/env bash
# npm ci from packages that were made here, without a network; the modules are what they are on the host.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need node npm
begin 1G

export npm_config_cache=$HOST/cache npm_config_offline=true npm_config_audit=false npm_config_fund=false
export npm_config_update_notifier=false npm_config_userconfig=$HOST/npmrc npm_config_loglevel=error
export HOME=$HOST

PACKAGES=$(count 25 200)
FILES=30
project=$HOST/project
mkdir -p "$HOST/packages" "$project/tarballs"
dependencies=
for ((n = 0; n < PACKAGES; n++)); do
    package=$HOST/packages/$n name=package-$n
    ((n % 5)) || name=@scope/package-$n
    mkdir -p "$package/lib/deep/er" "$package/bin"
    for ((file = 0; file < FILES; file++)); do
        printf 'exports.value = %d;\n// %s\n' "$((n * file))" "$name" > "$package/lib/deep/er/file$file.js"
    done
    noise "$n" 40000 > "$package/lib/data.bin"
    # shellcheck disable=SC2016
    echo 'let sum = 0; for (let n = 0; n < '"$FILES"'; n++) sum += require(`./lib/deep/er/file${n}.js`).value;
module.exports = sum;' > "$package/index.js"
    printf '#!/usr/bin/env node\nconsole.log(require(".."));\n' > "$package/bin/run.js"
    printf '{"name": "%s", "version": "1.0.%d", "bin": {"run-%d": "bin/run.js"}}' "$name" "$n" "$n" \
        > "$package/package.json"
    dependencies+="${dependencies:+, }\"$name\": \"file:tarballs/$n.tgz\""
    # The same as `npm pack` makes, which would take a second for each.
    tar -C "$HOST/packages" --transform="s,^$n,package," -czf "$project/tarballs/$n.tgz" "$n"
done
within 60 npm pack --silent --pack-destination "$HOST" "$HOST/packages/1" > /dev/null
mv "$HOST/package-1-1.0.1.tgz" "$project/tarballs/1.tgz"
printf '{"name": "project", "version": "1.0.0", "dependencies": {%s}}' "$dependencies" > "$project/package.json"
(cd "$project" && within 120 npm install --package-lock-only)

cp -a "$project" "$MNT/project"
for place in "$project" "$MNT/project"; do
    (cd "$place" && within 200 npm ci)
done
same_modules() {
    # When a file was unpacked differs.
    same_tree "$project/node_modules" "$MNT/project/node_modules" --no-times
    (cd "$MNT/project" && within 60 node -e '
        const names = Object.keys(require("./package.json").dependencies);
        const sums = names.map(name => require(name) / Number(name.match(/\d+/)[0] || 1));
        const want = '"$((FILES * (FILES - 1) / 2))"';
        const wrong = names.filter((name, n) => !name.endsWith("package-0") && sums[n] !== want);
        if (wrong.length) { console.error("these give other sums:", wrong); process.exit(1); }') ||
        fail "the modules do not run"
    [[ $(within 30 "$MNT/project/node_modules/.bin/run-2") == "$((FILES * (FILES - 1)))" ]] ||
        fail "a module's program says something else"
}
same_modules
# Once more over what is there, and with the cache on the mount.
(cd "$MNT/project" && npm_config_cache=$MNT/cache within 200 npm ci)
same_modules
(cd "$MNT/project" && npm_config_cache=$MNT/cache within 100 npm cache verify > /dev/null)
remount
same_modules
finish
