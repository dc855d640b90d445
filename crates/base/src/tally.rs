//! A small number for each of very many things that are numbered one after the other.

use std::collections::BTreeMap;

/// Things that share a page.
const PAGE: u64 = 4096;

/// Numbers by number, 0 where none was noted. Takes 4 bytes for each where they lie close together.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pages: BTreeMap<u64, Box<[u32]>>,
    noted: u64,
}

impl Tally {
    /// What was noted of this one.
    pub fn get(&self, id: u64) -> u32 {
        self.pages.get(&(id / PAGE)).map_or(0, |page| page[(id % PAGE) as usize])
    }

    /// Counts this one once more, up to as far as the numbers go.
    pub fn add_one(&mut self, id: u64) {
        let page = self.pages.entry(id / PAGE).or_insert_with(|| vec![0; PAGE as usize].into());
        let number = &mut page[(id % PAGE) as usize];
        self.noted += u64::from(*number == 0);
        *number = number.saturating_add(1);
    }

    /// How many were noted at all.
    pub fn noted(&self) -> u64 {
        self.noted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_far_and_near() {
        let mut tally = Tally::default();
        for id in [0, 4095, 4096, u64::MAX, 4096, 0, 0] {
            tally.add_one(id);
        }
        let found: Vec<u32> = [0, 1, 4095, 4096, 4097, u64::MAX].map(|id| tally.get(id)).into();
        assert_eq!(found, [3, 0, 1, 2, 0, 1]);
        assert_eq!(tally.noted(), 4);
    }
}
