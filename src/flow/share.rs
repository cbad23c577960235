//! How much of a common good one model may take, so that no flood starves another model.
//!
//! A model alone may take everything. When several are active, a model may hold at most 1.5 times what is still free
//! (Choudhury and Hahne 1998, "dynamic threshold"): one flood stops at 60 % of the whole, two at 37.5 % each, and however
//! many flood, something is free for the next. Pure arithmetic, in requests or bytes.

/// Share of the free part that a model may hold, as a fraction (3/2); one flood alone then stops at 60 %.
const FREE_SHARE: (u64, u64) = (3, 2);

/// Whether a model that holds `own` of the `used` part of `whole` may take `more`.
pub(super) const fn may_take(whole: u64, used: u64, own: u64, more: u64, are_several_active: bool) -> bool {
    if used.saturating_add(more) > whole {
        return false;
    }
    if !are_several_active {
        return true;
    }
    let free = whole - used;
    let (times, over) = FREE_SHARE;
    let rest = free.saturating_sub(more).saturating_mul(times) / over;
    // The first unit is always granted while there is room: a small whole must not shut a model out by rounding.
    own == 0 || own.saturating_add(more) <= rest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    /// Everybody takes single units in turn until nobody can; returns what each holds.
    fn flood(whole: u64, models: usize, are_several_active: bool) -> Vec<u64> {
        let mut held = vec![0; models];
        loop {
            let before = held.clone();
            for model in 0..models {
                let used = held.iter().sum();
                if may_take(whole, used, held[model], 1, are_several_active) {
                    held[model] += 1;
                }
            }
            if held == before {
                return held;
            }
        }
    }

    #[test]
    fn alone_all_else_a_share_with_room_for_the_next() {
        assert_eq!(flood(1000, 1, false), [1000]);
        assert_eq!(flood(1000, 1, true), [600]);
        assert_eq!(flood(1000, 2, true), [375, 375]);
        for models in 3..20 {
            let held = flood(1000, models, true);
            assert!(held.iter().sum::<u64>() < 1000, "{models}: {held:?}");
            assert!(may_take(1000, held.iter().sum(), 0, 1, true), "a newcomer gets in");
        }
        assert_eq!(flood(1, 1, true), [1]);
    }
}
