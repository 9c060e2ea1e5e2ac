//! The loaded program against the oracle, a model of the whole data plane that shares nothing with
//! it: verdict, every byte, every counter and every flow table entry must agree.

use std::net::IpAddr;

use lb_tests::oracle::case::Case;
use lb_tests::oracle::clause::{Clause, Walk};
use lb_tests::oracle::compare::compare;
use lb_tests::oracle::fuzz::Fuzz;
use lb_tests::oracle::generate::{self, frame, mutate};
use lb_tests::oracle::install::{Installed, with_program};
use lb_tests::oracle::regressions;

#[track_caller]
fn agree(installed: &mut Installed, case: &Case) {
    let compared = compare(installed, case, Walk::default(), true);
    if let Some(difference) = compared.difference {
        panic!("{difference}\n{}", case.to_toml());
    }
}

#[test]
fn random_cases_end_the_same_in_the_program_and_in_the_model() {
    const FRAMES: u64 = 200_000;
    with_program(|installed| {
        let mut fuzz = Fuzz::new(1);
        while fuzz.frames < FRAMES {
            if let Some(failure) = fuzz.step(installed) {
                panic!("{}\n{}", failure.difference, failure.case.to_toml());
            }
        }
        #[expect(clippy::print_stdout, reason = "worth knowing")]
        {
            println!(
                "{} frames in {} cases took {} ways over {} edges",
                fuzz.frames,
                fuzz.cases,
                fuzz.paths(),
                fuzz.edges()
            );
        }
    });
}

/// Every kind of packet, cut off after each of its bytes, with what a short frame's padding may be
/// behind it.
#[test]
fn frames_cut_off_at_every_length_end_the_same() {
    let vips = [
        IpAddr::from([198, 18, 9, 0x10]),
        IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x10]),
    ];
    with_program(|installed| {
        let mut world = generate::case(7, 0).world;
        world.entries.clear();
        for service in &mut world.services {
            service.port = 80;
        }
        world.services.clear();
        for vip in vips {
            for protocol in [6, 17] {
                let service = generate::pool_service(vip, protocol);
                world.services.push(service);
            }
        }
        for (name, frame) in frame::one_of_each(vips) {
            let frames: Vec<_> = mutate::truncated(&frame)
                .flat_map(|cut| {
                    let padded = [&cut[..], &[0x5a; 30]].concat();
                    [cut, padded]
                })
                .collect();
            for frames in frames.chunks(20) {
                let case = Case {
                    name: name.to_owned(),
                    frames: frames.to_vec(),
                    world: world.clone(),
                    ..Case::default()
                };
                agree(installed, &case);
            }
        }
    });
}

/// The comparison notices every clause of the model: whichever is left out, something differs.
#[test]
fn a_model_that_lacks_any_one_clause_is_found_out() {
    const CASES: u64 = 20_000;
    with_program(|installed| {
        let mut unnoticed = Vec::new();
        for clause in Clause::ALL {
            let mut fuzz = Fuzz::new(*clause as u64);
            let mut noticed = false;
            while !noticed && fuzz.cases < CASES {
                if let Some(failure) = fuzz.step_with(installed, Some(*clause)) {
                    // The whole model agrees: it's the clause.
                    agree(installed, &failure.case);
                    noticed = true;
                }
            }
            if !noticed {
                unnoticed.push(clause);
            }
        }
        assert!(unnoticed.is_empty(), "{unnoticed:?}");
    });
}

/// What once went wrong, for ever.
#[test]
fn regressions_stay_mended() {
    with_program(|installed| {
        let cases = regressions::all();
        assert!(!cases.is_empty());
        for case in cases {
            assert!(!case.why.is_empty(), "{}: why is it kept?", case.name);
            agree(installed, &case);
        }
    });
}
