//! The log's endless addresses: what is written is read back, over the wrap, from every copy.

use crate::stage::{SLOT_BYTES, create};
use aegisfs_base::{Rng, SeededRng};
use aegisfs_device::Device;
use aegisfs_format::layout::DeviceLayout;
use aegisfs_format::map::MapOwner;
use aegisfs_format::slot::{SlotContent, SlotHeader};
use aegisfs_pool::LogRing;

const SEED: u64 = 61;
const BLOCK_BYTES: u64 = 4096;

#[test]
fn positions_wrap_and_every_copy_holds_them() {
    for devices in 1..3 {
        let (world, stage) = create(devices, SEED);
        let ring = LogRing::new(stage.pool.clone());
        assert_eq!(ring.copies(), devices);
        assert_eq!(ring.capacity(), 4 * (SLOT_BYTES - BLOCK_BYTES));
        let rng = SeededRng::new(SEED);
        let capacity = usize::try_from(ring.capacity()).unwrap();
        let mut model: Vec<u8> = Vec::new();
        while model.len() < 3 * capacity {
            let position = model.len() as u64;
            let blocks = ring.room_in_piece(position) / BLOCK_BYTES;
            let mut data = vec![0; ((1 + rng.below(blocks.min(30))) * BLOCK_BYTES) as usize];
            rng.fill(&mut data);
            ring.write(position, &data).unwrap();
            model.extend_from_slice(&data);
        }
        let mut at = model.len() - capacity;
        while at < model.len() {
            let bytes = usize::try_from(ring.room_in_piece(at as u64)).unwrap().min(model.len() - at);
            for copy in 0..ring.copies() {
                let mut found = vec![0; bytes];
                ring.read(at as u64, copy, &mut found).unwrap();
                assert!(found == model[at..at + bytes], "copy {copy} at {at}");
            }
            at += bytes;
        }
        headers_are_whole(&world, &stage.pool.mapped_slots());
    }
}

/// Positions leave the slots' headers alone.
fn headers_are_whole(world: &aegisfs_sim::SimWorld, entries: &[aegisfs_format::map::MapEntry]) {
    for entry in entries.iter().filter(|e| e.owner == MapOwner::Log) {
        let device = world.device(usize::from(entry.device.0));
        let layout = DeviceLayout::new(device.bytes(), SLOT_BYTES).unwrap();
        let mut block = [0; BLOCK_BYTES as usize];
        device.read_at(layout.slot_offset(entry.slot), &mut block).unwrap();
        let header = SlotHeader::decode(&block).unwrap();
        assert_eq!(header.content, SlotContent::Log { piece: entry.piece });
        assert_eq!((header.device, header.slot, header.member), (entry.device, entry.slot, entry.copy));
    }
}
