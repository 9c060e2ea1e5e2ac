use std::time::Duration;

use proptest::prelude::*;

use super::{CLOSED, Fault, IDLE, Packet, World, hash};

#[test]
fn no_flow_is_ever_moved_while_its_vm_lives() {
    let outcome = World::new(0x5eed, Fault::None).run(400_000);
    assert_eq!(outcome.moved, 0, "{outcome:?}");
    // All that can go wrong was there.
    assert!(outcome.moves > 1000 && outcome.deaths > 20, "{outcome:?}");
    assert!(
        outcome.refused > 100 && outcome.reused > 1000 && outcome.stray > 1000,
        "{outcome:?}"
    );
    // The gap: an opening packet that is repeated after its row moved. Here one in ten is repeated
    // and rows move every minute; even so it is rare.
    assert!(outcome.reopened > 0, "the model has it: {outcome:?}");
    assert!(outcome.reopened * 500 < outcome.packets, "{outcome:?}");
}

#[test]
fn every_clause_of_the_rule_is_needed() {
    for fault in [
        Fault::SettleWhileRefused,
        Fault::SettleEarly,
        Fault::FinishEarly,
        Fault::ForgetFirstOwner,
        Fault::KeepOldEntry,
        Fault::RefusedToOwner,
        Fault::KeepNothing,
        Fault::TrustAnySequence,
        Fault::TrustAnyEnd,
        Fault::DeleteOnOpening,
    ] {
        let outcome = World::new(0x5eed, fault).run(400_000);
        assert!(outcome.moved > 0, "{fault:?} goes unnoticed: {outcome:?}");
    }
}

/// A story too rare for worlds of chance: a flow with the tuple of one that has just closed. Returns
/// its VM, and where its last packet went.
fn reuse_of_a_closed_tuple(fault: Fault) -> (u32, u32) {
    let mut world = World::new(1, fault);
    let only = |world: &mut World, chosen: u32| {
        for (number, backend) in &mut world.backends {
            backend.weight = u32::from(*number == chosen);
        }
        world.plan();
    };
    let send = |world: &mut World, opening: bool, closing: bool, sequence: u32| {
        world.forward(Packet {
            tuple: 1,
            opening,
            closing,
            sequence,
        })
    };
    let pass = |world: &mut World, seconds: u64| {
        world.now += Duration::from_secs(seconds);
        world.sweep();
    };
    // A flow of a moved row lives until the row has settled, and closes.
    let last = world.ring.row((hash(1) & 31) as u32).unwrap().owner().get();
    let first = if last == 1 { 2 } else { 1 };
    only(&mut world, first);
    send(&mut world, true, false, 1000);
    for _ in 0..6 {
        send(&mut world, false, false, 1001);
        pass(&mut world, IDLE.as_secs() / 6);
    }
    send(&mut world, false, true, 1001);
    pass(&mut world, 1);
    // The next one with its tuple is there when the row moves again, and then silent for nearly as
    // long as it may be.
    let vm = send(&mut world, true, false, 5_000_000);
    send(&mut world, false, false, 5_000_001);
    only(&mut world, last);
    world.now += Duration::from_secs(1);
    send(&mut world, false, false, 5_000_001);
    pass(&mut world, CLOSED.as_secs() + 1);
    pass(&mut world, IDLE.as_secs() - CLOSED.as_secs() - 2);
    (vm, send(&mut world, false, false, 5_000_001))
}

#[test]
fn a_flow_is_not_taken_for_the_closed_one_whose_tuple_it_has() {
    let (vm, last) = reuse_of_a_closed_tuple(Fault::None);
    assert_eq!(last, vm);
    let (vm, last) = reuse_of_a_closed_tuple(Fault::FinishOverClosed);
    assert_ne!(last, vm, "or the clause would not be needed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_flow_is_moved_in_any_world(seed: u64) {
        let outcome = World::new(seed, Fault::None).run(20_000);
        prop_assert_eq!(outcome.moved, 0);
    }
}
