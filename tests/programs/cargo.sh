#!/usr/bin/env bash
# cargo builds and tests a crate whose sources and target folder lie on the mount. Without a network.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need cargo
begin "$(count 2G 8G)"

# What a cargo that runs us has set is for its own package.
for variable in $(compgen -e | grep -E '^CARGO_(PKG|MANIFEST|BIN|CRATE|PRIMARY|TARGET|ENCODED|BUILD|INCREMENTAL)' || true); do
    unset "$variable"
done
unset RUSTFLAGS RUSTDOCFLAGS
export CARGO_TARGET_DIR=$MNT/target CARGO_NET_OFFLINE=true CARGO_INCREMENTAL=1

# Two crates that need no other, with modules, unit tests, an integration test and a build script.
write_crates() {
    local work=$1 n modules=12
    mkdir -p "$work/numbers/src" "$work/app/src" "$work/app/tests"
    printf '[workspace]\nresolver = "2"\nmembers = ["numbers", "app"]\n' > "$work/Cargo.toml"
    printf '[package]\nname = "numbers"\nversion = "0.1.0"\nedition = "2021"\nbuild = "build.rs"\n' \
        > "$work/numbers/Cargo.toml"
    cat > "$work/numbers/build.rs" << 'RUST'
use std::{env, fs, path::Path};
fn main() {
    let words: Vec<String> = (0..500).map(|n| format!("\"word {n}\"")).collect();
    let text = format!("pub static WORDS: [&str; {}] = [{}];", words.len(), words.join(", "));
    fs::write(Path::new(&env::var("OUT_DIR").unwrap()).join("words.rs"), text).unwrap();
    println!("cargo:rerun-if-changed=build.rs");
}
RUST
    echo 'include!(concat!(env!("OUT_DIR"), "/words.rs"));' > "$work/numbers/src/lib.rs"
    for ((n = 0; n < modules; n++)); do
        echo "pub mod part$n;" >> "$work/numbers/src/lib.rs"
        cat > "$work/numbers/src/part$n.rs" << RUST
use std::collections::BTreeMap;
/// Counts the words of a text whose length leaves this remainder.
pub fn count(text: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for word in text.split_whitespace().filter(|word| word.len() % $modules == $n) {
        *found.entry(word.to_owned()).or_insert(0) += 1;
    }
    found
}
#[test]
fn words_are_counted() {
    let word = "x".repeat($n + $modules);
    assert_eq!(count(&format!("{word} {word}"))[&word], 2);
}
RUST
    done
    printf '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\nnumbers = { path = "../numbers" }\n' \
        > "$work/app/Cargo.toml"
    cat > "$work/app/src/main.rs" << 'RUST'
fn main() {
    let text = numbers::WORDS.join(" ");
    println!("{} words, {}", numbers::WORDS.len(), numbers::part4::count(&text)["word"]);
}
RUST
    cat > "$work/app/tests/whole.rs" << 'RUST'
#[test]
fn it_runs() {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_app")).output().unwrap();
    assert_eq!(out.stdout, b"500 words, 500\n");
}
RUST
}

here() { (cd "$MNT/$1" && within "$2" cargo "${@:3}"); }
write_crates "$MNT/crates"
here crates 200 test --quiet --offline > "$HOST/first" 2>&1 || fail "cargo test: $(cat "$HOST/first")"
[[ $(grep -c "^test result: ok" "$HOST/first") -ge 3 ]] || fail "too few results: $(cat "$HOST/first")"
# Nothing changed, so nothing may be built again: times of files are what decides.
here crates 100 test --offline 2>&1 | grep -E "Compiling|Dirty" && fail "cargo builds again what has not changed"
sed -i 's/words, {}/words; {}/' "$MNT/crates/app/src/main.rs"
here crates 200 test --quiet --offline > "$HOST/second" 2>&1 && fail "a changed source was not seen"
sed -i 's/words; {}/words, {}/' "$MNT/crates/app/src/main.rs"
here crates 200 test --quiet --offline > "$HOST/third" 2>&1 || fail "cargo test: $(cat "$HOST/third")"
here crates 200 build --quiet --offline --release
say "two crates without dependencies: built and tested"

# This project as far as its ground floor, or all of it. What it depends on is where whoever built it has it.
mkdir "$MNT/project"
(cd "$SOURCES" && cp -a Cargo.toml Cargo.lock crates xtask "$MNT/project/")
here project 200 test --quiet --offline --locked --package aegisfs-base > "$HOST/base" 2>&1 ||
    fail "cargo test of the project's base: $(cat "$HOST/base")"
if [[ -n $LONG ]]; then
    here project 3000 build --quiet --offline --locked --release --package aegisfs
    within 60 "$MNT/target/release/aegisfs" --version
fi

remount
here crates 100 test --offline 2>&1 | grep -E "Compiling|Dirty" && fail "cargo builds again after a remount"
[[ $(within 20 "$MNT/target/release/app") == "500 words, 500" ]] || fail "the program says something else"
finish
