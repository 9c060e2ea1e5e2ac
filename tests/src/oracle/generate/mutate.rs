//! Damage: what broken senders, cut cables and attackers do to frames.

use super::random::Random;

/// The longest frame that a test run takes: a page less the kernel's own share.
const LONGEST: usize = 3000;
/// The shortest.
const SHORTEST: usize = 14;

/// Damages a frame in one to three ways.
pub fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..1 + random.below(3) {
        once(random, frame);
    }
    frame.truncate(LONGEST);
    let len = frame.len().max(SHORTEST);
    frame.resize(len, 0);
}

fn once(random: &mut Random, frame: &mut Vec<u8>) {
    if frame.is_empty() {
        return;
    }
    // Headers are more interesting than what they carry.
    let within = if random.one_in(4) {
        frame.len()
    } else {
        frame.len().min(90)
    };
    let at = random.below(within);
    match random.below(9) {
        0 => frame.truncate(at),
        1 => frame[at] ^= 1 << random.below(8),
        2 => frame[at] = random.one_of(&[0, 1, 0x45, 0x46, 0x4f, 0x60, 0x7f, 0x80, 0xff]),
        3 => frame[at] = random.word() as u8,
        4 => {
            let count = random.one_of(&[1, 2, 4, 8, 20, 40]);
            let bytes = random.bytes(count);
            frame.splice(at..at, bytes);
        }
        5 => {
            let end = (at + random.one_of(&[1, 2, 4, 8, 20])).min(frame.len());
            frame.drain(at..end);
        }
        6 => {
            // A piece once more: nested headers, repeated options.
            let end = (at + random.one_of(&[4, 8, 20, 40])).min(frame.len());
            let piece = frame[at..end].to_vec();
            let to = random.below(frame.len());
            frame.splice(to..to, piece);
        }
        7 => {
            // A length or a number, off by a little.
            let by = random.one_of(&[1, 0xff, 2, 4, 0xfc, 8, 20]);
            frame[at] = frame[at].wrapping_add(by);
        }
        _ => {
            let count = random.below(24);
            frame.extend(random.bytes(count));
        }
    }
}

/// Returns all cut-off forms of a frame that a test run takes.
pub fn truncated(frame: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (SHORTEST..=frame.len()).map(|len| frame[..len].to_vec())
}
