//! Drives a program under `BPF_PROG_TEST_RUN`, for `cargo xtask bench`.
//!
//! A program that encapsulates changes the frame, and a repeated test run does not put it back. So
//! the driver restores the frame's length and first bytes from a template, varies the flow, and
//! tail-calls the program under test. What that costs is measured by the same driver with a stub
//! as the program under test: it moves the head by as much, and answers the same. By how much and
//! what is set when it is loaded, so it looks nothing up that the program under test does not.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the `xdp` macro makes a function without a comment"
)]

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::xdp_action,
    helpers::bpf_tail_call,
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};
use lb_common::bench::{Setup, TEMPLATE_LEN};
use lb_ebpf::packet::Context;

#[map]
static SETUP: Array<Setup> = Array::with_max_entries(1, 0);
#[map]
static PROGRAM: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[unsafe(no_mangle)]
static STUB_GROW: Global<i32> = Global::new(0);
#[unsafe(no_mangle)]
static STUB_VERDICT: Global<u32> = Global::new(xdp_action::XDP_ABORTED);

/// Restores the frame, varies its flow and runs the program under test.
#[xdp]
pub fn weir_bench(ctx: XdpContext) -> u32 {
    let raw = ctx.as_ptr();
    let mut context = Context::new(ctx);
    if prepare(&mut context).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the map is a program array, and the context the kernel's.
    unsafe { bpf_tail_call(raw, (&raw const PROGRAM).cast_mut().cast(), 0) };
    xdp_action::XDP_ABORTED
}

/// Answers like a program that encapsulates by `STUB_GROW` bytes.
#[xdp]
pub fn weir_bench_stub(ctx: XdpContext) -> u32 {
    let mut context = Context::new(ctx);
    let grow = STUB_GROW.load();
    if grow != 0 && context.move_head(-grow).is_err() {
        return xdp_action::XDP_ABORTED;
    }
    STUB_VERDICT.load()
}

#[inline(always)]
fn prepare(context: &mut Context) -> Option<()> {
    let setup = SETUP.get_ptr_mut(0)?;
    // SAFETY: an element of the map; the benchmark runs on one CPU.
    let setup = unsafe { &mut *setup };
    let grown = context.buffer_len() as i32 - setup.frame_len;
    if grown != 0 {
        context.move_head(grown).ok()?;
    }
    let frame = context.frame().at::<TEMPLATE_LEN>(0)?;
    frame.set64::<0>(setup.template[0]);
    frame.set64::<8>(setup.template[1]);
    frame.set64::<16>(setup.template[2]);
    frame.set64::<24>(setup.template[3]);
    frame.set64::<32>(setup.template[4]);
    frame.set64::<40>(setup.template[5]);
    frame.set64::<48>(setup.template[6]);
    // An odd number of steps visits every flow, and neighbours in time are not neighbours.
    let flow = setup.next.wrapping_mul(0x9e37_79b1) & setup.flow_mask;
    setup.next = setup.next.wrapping_add(1);
    // Source address bits and source port.
    if setup.ipv6 != 0 {
        frame.set16::<36>((flow >> 16) as u16);
        frame.set16::<54>(flow as u16);
        let port = context.frame().at::<2>(TEMPLATE_LEN)?;
        port.set16::<0>(setup.port_v6);
    } else {
        frame.set16::<28>((flow >> 16) as u16);
        frame.set16::<34>(flow as u16);
    }
    Some(())
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
