#!/usr/bin/env bash
# git: clone, gc, fsck, worktrees, a merge; the files are what they are in a clone on the host.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need git
begin 1G

# Nothing of the person's own settings, and a repository of another owner is fine.
export GIT_CONFIG_GLOBAL=$HOST/gitconfig GIT_CONFIG_NOSYSTEM=1
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
git config --global safe.directory '*'
git config --global user.name tester
git config --global user.email tester@example.org
git config --global init.defaultBranch main
git config --global advice.detachedHead false

# The project's own history, or a short one of its files where there is none.
origin=$HOST/origin
if ! within 120 git clone --quiet --bare --no-local "file://$SOURCES" "$origin" 2> /dev/null; then
    mkdir "$HOST/made"
    cp -a "$SOURCES/crates" "$SOURCES/docs" "$HOST/made/"
    within 60 git -C "$HOST/made" init --quiet
    for part in docs crates/base crates/format crates/store crates; do
        within 60 git -C "$HOST/made" add "$part"
        within 60 git -C "$HOST/made" commit --quiet --allow-empty --message "$part"
    done
    within 60 git clone --quiet --bare "$HOST/made" "$origin"
fi

within 120 git clone --quiet --no-local "file://$origin" "$HOST/clone"
within 240 git clone --quiet --no-local "file://$origin" "$MNT/clone"
here() { within 300 git -C "$MNT/clone" "$@"; }
is_clean() {
    local status
    status=$(within 120 git -C "$1" status --porcelain)
    [[ -z $status ]] || fail "$1 is not clean: $status"
}
# Times differ from clone to clone.
same_files() { same_tree "$HOST/clone" "$1" --exclude=/.git --no-times; }

is_clean "$MNT/clone"
same_files "$MNT/clone"
here fsck --full --strict --no-progress

for ((n = 0; n < $(count 10 200); n++)); do
    echo "line $n" >> "$MNT/clone/notes"
    noise "$n" 20000 > "$MNT/clone/noise $n"
    here add --all
    here commit --quiet --message "commit $n"
done
here branch side HEAD~5
here checkout --quiet side
echo other > "$MNT/clone/on the side"
here add --all
here commit --quiet --message "on the side"
here checkout --quiet -
here merge --quiet --no-edit side
here tag --annotate --message "a tag" tagged
here gc --quiet --aggressive --prune=now
here fsck --full --strict --no-progress
here worktree add --quiet "$MNT/worktree" side
is_clean "$MNT/worktree"
here worktree add --quiet --detach "$MNT/as it was" "$(git -C "$HOST/clone" rev-parse HEAD)"
is_clean "$MNT/as it was"
same_files "$MNT/as it was"
here repack -a -d -f --quiet
here pack-refs --all
here push --quiet origin HEAD:refs/heads/pushed side tagged

remount
is_clean "$MNT/clone"
is_clean "$MNT/worktree"
same_files "$MNT/as it was"
here fsck --full --strict --no-progress
# What was pushed to the host is what is here.
within 60 git -C "$origin" fsck --full --strict --no-progress
here archive --format=tar HEAD > "$HOST/here.tar"
within 60 git -C "$origin" archive --format=tar pushed | cmp - "$HOST/here.tar" ||
    fail "the tree that was pushed is another"
finish
