//! Trouble that fuzzing found, and that must not come back.

use aegisfs_base::{BranchId, EpochId, Sequence};
use aegisfs_format::log::{self, LogRecordHead, LogRecordPlace};
use aegisfs_format::op::Transaction;
use aegisfs_format::superblock::Superblock;

#[test]
fn a_record_with_the_largest_sequence_is_refused() {
    let transaction =
        |sequence| Transaction { sequence, branch: BranchId(0), epoch: EpochId(1), ops: Vec::new() };
    let mut body = Vec::new();
    transaction(Sequence(u64::MAX)).encode(&mut body);
    transaction(Sequence(1)).encode(&mut body);
    let place = LogRecordPlace {
        incarnation: Default::default(),
        position: 0,
        sequences: (Sequence(u64::MAX), Sequence(1)),
        flushed: Sequence(0),
        previous: [0; 16],
    };
    let (bytes, _) = log::encode(&place, &[], &body);
    let head = LogRecordHead::decode(&bytes, true).expect("its checksum is right");
    assert!(head.open(&bytes).is_err());
}

#[test]
fn a_superblock_with_texts_that_are_not_utf_8_can_be_written_again() {
    let mut bytes = aegisfs_fuzz::samples::superblock().remove(0);
    // The label takes all of its place, and none of it is text.
    bytes[102] = 64;
    bytes[104..168].fill(0xff);
    if let Ok(block) = Superblock::decode_with(&bytes, false) {
        assert_eq!(Superblock::decode(&block.encode()), Ok(block));
    }
}
