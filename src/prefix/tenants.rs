//! Who is charged for the memory of the index: the tenant whose request first brought a run of blocks. Blocks that many
//! share are charged once, to the first.
use super::slab::Map;

/// Most tenants told apart at a time; the others are charged together.
const TENANTS_MAX: usize = 4_096;
/// The place of requests without a tenant, and of tenants beyond the limit.
const OTHERS: u16 = 0;

/// Blocks per tenant.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    places: Map<u64, u16>,
    /// Name and blocks, by place.
    list: Vec<(u64, usize)>,
    free: Vec<u16>,
}

impl Tenants {
    /// The place of a tenant, by the hash of its name; 0 is nobody's name.
    pub(super) fn place(&mut self, name: u64) -> u16 {
        if self.list.is_empty() {
            self.list.push((0, 0));
        }
        if name == 0 {
            return OTHERS;
        }
        if let Some(place) = self.places.get(&name) {
            return *place;
        }
        if self.places.len() + 1 >= TENANTS_MAX {
            return OTHERS;
        }
        let place = self.free.pop().unwrap_or(self.list.len() as u16);
        match self.list.get_mut(usize::from(place)) {
            Some(entry) => *entry = (name, 0),
            None => self.list.push((name, 0)),
        }
        self.places.insert(name, place);
        place
    }

    /// Charges more blocks.
    pub(super) fn add(&mut self, place: u16, blocks: usize) {
        if let Some(entry) = self.list.get_mut(usize::from(place)) {
            entry.1 += blocks;
        }
    }

    /// Gives blocks back. A tenant without blocks is forgotten.
    pub(super) fn less(&mut self, place: u16, blocks: usize) {
        let Some(entry) = self.list.get_mut(usize::from(place)) else { return };
        entry.1 = entry.1.saturating_sub(blocks);
        if entry.1 == 0 && place != OTHERS && blocks > 0 {
            self.places.remove(&entry.0);
            self.free.push(place);
        }
    }

    /// Blocks charged to a place.
    pub(super) fn blocks(&self, place: u16) -> usize {
        self.list.get(usize::from(place)).map_or(0, |entry| entry.1)
    }

    /// The name behind a place.
    pub(super) fn name(&self, place: u16) -> u64 {
        self.list.get(usize::from(place)).map_or(0, |entry| entry.0)
    }

    /// The tenant with the most blocks, if these are more than `most`.
    pub(super) fn largest_over(&self, most: f64) -> Option<u16> {
        let (place, entry) = self.list.iter().enumerate().max_by_key(|(_, entry)| entry.1)?;
        (entry.1 as f64 > most).then_some(place as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_the_number_of_tenants_is_bounded() {
        let mut tenants = Tenants::default();
        assert_eq!((tenants.place(0), tenants.place(7), tenants.place(7), tenants.place(8)), (0, 1, 1, 2));
        tenants.add(1, 5);
        tenants.add(2, 6);
        assert_eq!((tenants.largest_over(5.5), tenants.largest_over(6.0)), (Some(2), None));
        tenants.less(1, 5);
        assert_eq!((tenants.place(9), tenants.name(1), tenants.blocks(2)), (1, 9, 6));
        let last = (10..10_000).map(|name| tenants.place(name)).last();
        assert_eq!((last, tenants.list.len() <= TENANTS_MAX), (Some(OTHERS), true));
    }
}
