//! The frame in memory: the only pointer arithmetic of the program.
//!
//! A [`Bytes<LEN>`] is proof that `LEN` bytes from some offset lie within the frame, so its
//! accessors are checked at compile time and cost nothing. It borrows the [`Context`], so none
//! can be kept over [`Context::move_head`], which invalidates all pointers into the frame.

use core::marker::PhantomData;

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_md,
    helpers::{
        bpf_check_mtu, bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
        bpf_xdp_get_buff_len,
    },
    programs::XdpContext,
};

/// The context of one run of the program.
pub struct Context(XdpContext);

impl Context {
    /// Takes what the kernel gave the program.
    #[inline(always)]
    pub fn new(ctx: XdpContext) -> Self {
        Self(ctx)
    }

    /// Returns the frame as it is now.
    #[inline(always)]
    pub fn frame(&self) -> Frame<'_> {
        Frame {
            ctx: self.0.ctx,
            start: self.0.data(),
            end: self.0.data_end(),
            _borrow: PhantomData,
        }
    }

    /// Returns the index of the interface that the frame came in by.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    /// Returns the frame's length in bytes, from the kernel rather than from two pointers: a number
    /// that the verifier lets us do arithmetic with. A helper call; not for the fast path.
    #[inline(always)]
    pub fn buffer_len(&self) -> u64 {
        // SAFETY: the helper takes the context that the kernel gave us.
        unsafe { bpf_xdp_get_buff_len(self.0.as_ptr().cast()) }
    }

    /// Returns the MTU of the interface that the frame came in by. A helper call.
    #[inline(always)]
    pub fn ingress_mtu(&self) -> Option<u32> {
        let mut mtu = 0;
        // SAFETY: the helper takes the context that the kernel gave us, 0 for its interface, and
        // writes one word, also if the frame does not fit.
        let result = unsafe { bpf_check_mtu(self.0.as_ptr(), 0, &raw mut mtu, 0, 0) };
        (result >= 0).then_some(mtu)
    }

    /// Returns what the kernel gave the program, for a function that makes a context of it again. It
    /// takes the context for itself: no reference into the frame outlives the call.
    #[inline(always)]
    pub fn raw(&mut self) -> *mut xdp_md {
        self.0.ctx
    }

    /// Moves the end of the frame by `delta` bytes; a negative `delta` cuts it off.
    #[inline(always)]
    pub fn move_tail(&mut self, delta: i32) -> Result<(), NoRoom> {
        // SAFETY: the helper takes the context that the kernel gave us, and checks `delta` itself.
        match unsafe { bpf_xdp_adjust_tail(self.0.as_ptr().cast(), delta) } {
            0 => Ok(()),
            _ => Err(NoRoom),
        }
    }

    /// Moves the start of the frame by `delta` bytes; a negative `delta` makes room in front.
    #[inline(always)]
    pub fn move_head(&mut self, delta: i32) -> Result<(), NoRoom> {
        // SAFETY: the helper takes the context that the kernel gave us, and checks `delta` itself.
        match unsafe { bpf_xdp_adjust_head(self.0.as_ptr().cast(), delta) } {
            0 => Ok(()),
            _ => Err(NoRoom),
        }
    }
}

/// The driver has no room in front of the frame, or behind it.
pub struct NoRoom;

/// A frame: from the Ethernet header to the end of the data, without the frame check sequence.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    ctx: *mut xdp_md,
    start: usize,
    end: usize,
    _borrow: PhantomData<&'a Context>,
}

impl<'a> Frame<'a> {
    /// Returns what the kernel gave the program, for a function that reads the frame on its own. One that
    /// moves its start or end takes [`Context::raw`].
    #[inline(always)]
    pub fn context(self) -> *mut xdp_md {
        self.ctx
    }

    /// Returns the frame's length in bytes.
    #[inline(always)]
    pub fn bytes(self) -> usize {
        self.end - self.start
    }

    /// Returns the `LEN` bytes at `offset`, or nothing if the frame is shorter.
    #[inline(always)]
    pub fn at<const LEN: usize>(self, offset: usize) -> Option<Bytes<'a, LEN>> {
        let start = self.start + offset;
        if start + LEN > self.end {
            return None;
        }
        Some(Bytes {
            start: start as *mut u8,
            _borrow: PhantomData,
        })
    }
}

/// `LEN` bytes of the frame. Words are as they lie in memory.
#[derive(Clone, Copy)]
pub struct Bytes<'a, const LEN: usize> {
    start: *mut u8,
    _borrow: PhantomData<&'a Context>,
}

macro_rules! accessors {
    ($get:ident, $set:ident, $type:ty) => {
        #[doc = concat!("Returns the ", stringify!($type), " at `OFFSET`.")]
        #[inline(always)]
        pub fn $get<const OFFSET: usize>(self) -> $type {
            const { assert!(OFFSET + size_of::<$type>() <= LEN) };
            // SAFETY: `Frame::at` checked that `LEN` bytes from `start` are in the frame, and the
            // line above that the word is among them.
            unsafe { self.start.add(OFFSET).cast::<$type>().read_unaligned() }
        }

        #[doc = concat!("Stores the ", stringify!($type), " at `OFFSET`.")]
        #[inline(always)]
        pub fn $set<const OFFSET: usize>(self, value: $type) {
            const { assert!(OFFSET + size_of::<$type>() <= LEN) };
            // SAFETY: as above; the frame is ours alone while the program runs.
            unsafe {
                self.start
                    .add(OFFSET)
                    .cast::<$type>()
                    .write_unaligned(value)
            }
        }
    };
}

impl<'a, const LEN: usize> Bytes<'a, LEN> {
    /// Returns the `PART` bytes at `OFFSET`.
    #[inline(always)]
    pub fn part<const OFFSET: usize, const PART: usize>(self) -> Bytes<'a, PART> {
        const { assert!(OFFSET + PART <= LEN) };
        Bytes {
            // SAFETY: `Frame::at` checked that `LEN` bytes from `start` are in the frame, and the
            // line above that the part is among them.
            start: unsafe { self.start.add(OFFSET) },
            _borrow: PhantomData,
        }
    }

    accessors!(get8, set8, u8);
    accessors!(get16, set16, u16);
    accessors!(get32, set32, u32);
    accessors!(get64, set64, u64);

    /// Returns the one's-complement sum of the bytes' words and `seed`, not folded to 16 bits. A helper
    /// call.
    #[inline(always)]
    pub fn sum(self, seed: u32) -> u32 {
        // What the helper takes at the most before Linux 6.13.
        const { assert!(LEN <= 512 && LEN.is_multiple_of(4)) };
        // SAFETY: `LEN` bytes from `start` are in the frame. The helper fails for other lengths only.
        let sum = unsafe {
            bpf_csum_diff(
                core::ptr::null_mut(),
                0,
                self.start.cast(),
                LEN as u32,
                seed,
            )
        };
        sum as u32
    }
}
