//! The load balancer's XDP program.
//!
//! `parse → service → guard → (flow table?) → row → backend → forward → count`, in one pass. What is not
//! ours goes to the host's stack untouched, as early as can be seen.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied on the small BPF stack once more"
)]
#![expect(
    missing_docs,
    reason = "the `xdp` macro makes a function without a comment"
)]

mod answer;
mod echo;
mod extension;
mod family;
mod flow;
mod forward;
mod fragment;
mod guard;
mod icmp;
mod maps;
mod nat;
mod parse;
mod pipeline;
mod route;
mod too_big;
mod trace;
mod translate;

use aya_ebpf::{macros::xdp, programs::XdpContext};

use lb_ebpf::packet::Context;
use trace::{Count, Explain};

/// The program that is attached.
#[xdp]
pub fn weir(ctx: XdpContext) -> u32 {
    #[cfg(feature = "log")]
    let log = XdpContext::new(aya_ebpf::EbpfContext::as_ptr(&ctx).cast());
    let verdict = pipeline::run(&mut Context::new(ctx), &Count);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        &log,
        "a frame, now of {} bytes: verdict {}",
        log.data_end() - log.data(),
        verdict
    );
    verdict
}

/// The same pipeline for `weir explain`: it is never attached, only run on a crafted packet by
/// `BPF_PROG_TEST_RUN`. It writes down what it decides, and touches neither counters nor flow
/// tables.
#[xdp]
pub fn weir_explain(ctx: XdpContext) -> u32 {
    let Some(explain) = Explain::start() else {
        return aya_ebpf::bindings::xdp_action::XDP_ABORTED;
    };
    pipeline::run(&mut Context::new(ctx), &explain)
}

/// Returns the kernel's jiffies, for the daemon: it needs "now" in the flow entries' unit. Run by
/// `BPF_PROG_TEST_RUN`; the value is in the frame's first eight bytes, and the monotonic clock in
/// nanoseconds, read at the same time, in the next eight.
#[xdp]
pub fn weir_clock(ctx: XdpContext) -> u32 {
    let ctx = Context::new(ctx);
    let Some(bytes) = ctx.frame().at::<16>(0) else {
        return aya_ebpf::bindings::xdp_action::XDP_ABORTED;
    };
    bytes.set64::<0>(maps::jiffies());
    bytes.set64::<8>(maps::monotonic_ns());
    aya_ebpf::bindings::xdp_action::XDP_PASS
}

/// The kernel lends helpers to GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A panic that could be reached would be an endless loop, which the verifier refuses: that the
/// program loads proves that it has none.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
