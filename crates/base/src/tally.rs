//! A small number for each of very many things that are numbered one after the other.

use std::collections::BTreeMap;

/// Things that share a page.
const PAGE: u64 = 4096;

/// Numbers by number, 0 where none was noted. Takes 4 bytes for each where they lie close together; 8 if they are large.
#[derive(Clone, Debug, Default)]
pub struct Tally<N = u32> {
    pages: BTreeMap<u64, Box<[N]>>,
    noted: u64,
}

impl<N: Copy + Default + PartialEq> Tally<N> {
    /// What was noted of this one.
    pub fn get(&self, id: u64) -> N {
        self.pages.get(&(id / PAGE)).map_or(N::default(), |page| page[(id % PAGE) as usize])
    }

    fn change(&mut self, id: u64, change: impl FnOnce(N) -> N) {
        let page = self.pages.entry(id / PAGE).or_insert_with(|| vec![N::default(); PAGE as usize].into());
        let number = &mut page[(id % PAGE) as usize];
        self.noted += u64::from(*number == N::default());
        *number = change(*number);
    }

    /// How many were noted at all.
    pub fn noted(&self) -> u64 {
        self.noted
    }
}

impl Tally {
    /// Counts this one once more, up to as far as the numbers go.
    pub fn add_one(&mut self, id: u64) {
        self.change(id, |number| number.saturating_add(1));
    }
}

impl Tally<u64> {
    /// Adds to what was noted of this one, as far as the numbers go; something, or it does not count as noted.
    pub fn add(&mut self, id: u64, some: u64) {
        self.change(id, |number| number.saturating_add(some));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_far_and_near() {
        let mut tally = <Tally>::default();
        for id in [0, 4095, 4096, u64::MAX, 4096, 0, 0] {
            tally.add_one(id);
        }
        let found: Vec<u32> = [0, 1, 4095, 4096, 4097, u64::MAX].map(|id| tally.get(id)).into();
        assert_eq!(found, [3, 0, 1, 2, 0, 1]);
        assert_eq!(tally.noted(), 4);
        let mut tally = Tally::<u64>::default();
        for (id, some) in [(7, 1 << 40), (8, 1), (7, u64::MAX)] {
            tally.add(id, some);
        }
        assert_eq!((tally.get(7), tally.get(8), tally.get(9), tally.noted()), (u64::MAX, 1, 0, 2));
    }
}
