//! What the verifier has to do for each program: a limit, so that it is noticed when it grows.

use lb_tests::program::Program;

/// The kernel refuses a program at a million.
const LIMIT: u32 = 100_000;

#[test]
fn every_program_is_far_below_the_verifiers_limit() {
    let mut program = Program::default();
    for name in ["weir", "weir_explain", "weir_clock"] {
        let info = program.kernel.program(name).unwrap().info().unwrap();
        let count = info.verified_instruction_count().unwrap();
        #[expect(clippy::print_stdout, reason = "worth knowing")]
        {
            println!("{name}: {count} instructions verified");
        }
        assert!((1..LIMIT).contains(&count), "{name}: {count}");
    }
}
