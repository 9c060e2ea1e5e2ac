//! Lists of sources. Global functions: see `global_function!` in `flow.rs`.

use lb_common::guard::{Blocks, Judgement, ListId, judge, near_bit};

use crate::maps;

/// Judges an IPv4 source, in memory order, by the global list and the service's own. Returns a
/// [`Judgement`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_v4(source: u32, own: u32) -> u32 {
    let high = u64::from(u32::from_be(source)) << 32;
    let global = ListId::from_stored(maps::guard_settings().list_v4);
    judge_by(global, ListId::from_stored(own), Blocks::V4, high, |list| {
        maps::longest_prefix_v4(list, source)
    })
}

/// Judges an IPv6 source, of four words in memory order, as [`guard_v4`] does.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_v6(a: u32, b: u32, c: u32, d: u32, own: u32) -> u32 {
    let high = u64::from(u32::from_be(a)) << 32 | u64::from(u32::from_be(b));
    let global = ListId::from_stored(maps::guard_settings().list_v6);
    judge_by(global, ListId::from_stored(own), Blocks::V6, high, |list| {
        maps::longest_prefix_v6(list, [a, b, c, d])
    })
}

#[inline(always)]
fn judge_by(
    global: ListId,
    own: ListId,
    blocks: Blocks,
    high: u64,
    longest_prefix: impl Fn(ListId) -> Option<u32>,
) -> u32 {
    for list in [global, own] {
        if list.is_none() {
            continue;
        }
        let near = |fine: bool, size: u32| maps::near(near_bit(list, fine, high >> (64 - size)));
        let found = if list.always() || near(true, blocks.fine) || near(false, blocks.coarse) {
            longest_prefix(list)
        } else {
            None
        };
        let judgement = judge(list, found);
        if !matches!(judgement, Judgement::LetIn) {
            return judgement as u32;
        }
    }
    Judgement::LetIn as u32
}
