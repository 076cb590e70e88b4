//! MD5's compression function (RFC 1321, section 3.4) over several streams at once: word i of every stream's block is one
//! vector, so that each step of the function is done for all of them by the same instructions.
//!
//! A step depends on the step before it, which is what holds a single stream back: a processor has nothing else to do meanwhile.

/// The state of `N` streams, word by word.
pub(super) type States<const N: usize> = [[u32; N]; 4];

/// Takes in as many blocks of each stream as the first has. A macro, because the functions that it calls are those of the file
/// that uses it, with that file's registers and instructions: `load`, `store`, `splat`, `add`, `rotate_left`; `add_last`, an
/// addition that the compiler leaves where it is, where otherwise it would add constants last and every step wait for one more; `words`, the
/// sixteen words of a block of each stream; and those that mix:
///
/// | | |
/// | --- | --- |
/// | `choose(b, c, d)` | where b is set c, else d |
/// | `parity(b, c, d)` | `b ^ c ^ d` |
/// | `last(b, c, d)` | `c ^ (b \| !d)` |
macro_rules! compress {
    ($states:expr, $streams:expr) => {{
        let (states, streams) = ($states, $streams);
        let mut state = [load(&states[0]), load(&states[1]), load(&states[2]), load(&states[3])];
        for at in 0..streams[0].len() {
            let words = words(streams, at);
            let [mut a, mut b, mut c, mut d] = state;
            steps!(a b c d words 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            steps!(a b c d words 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
            steps!(a b c d words 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47);
            steps!(a b c d words 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63);
            state = [add(state[0], a), add(state[1], b), add(state[2], c), add(state[3], d)];
        }
        for (vector, words) in state.into_iter().zip(states) {
            store(vector, words);
        }
    }};
}

/// Written out, so that words stay in registers and a rotation is by a constant.
macro_rules! steps {
    ($a:ident $b:ident $c:ident $d:ident $words:ident $($step:literal)*) => {$(
        let (mixed, word) = match $step / 16 {
            0 => (choose($b, $c, $d), $step),
            1 => (choose($d, $b, $c), (5 * $step + 1) % 16),
            2 => (parity($b, $c, $d), (3 * $step + 5) % 16),
            _ => (last($b, $c, $d), (7 * $step) % 16),
        };
        let fixed = add($a, add($words[word], splat(lanes::SINES[$step])));
        let turned = rotate_left(add_last(fixed, mixed), lanes::TURNS[$step / 16][$step % 4]);
        ($a, $b, $c, $d) = ($d, add($b, turned), $b, $c);
    )*};
}

pub(super) use {compress, steps};

/// How far ahead of what is worked on each stream is fetched. Sixteen streams are more than a processor foresees by itself, and their chunks
/// begin at the same offset of a page, so that they compete for the same places in its caches: twice as fast from memory.
#[cfg_attr(target_arch = "aarch64", allow(dead_code))]
pub(super) const AHEAD_BYTES: usize = 512;

/// `choose`, `parity` and `last` as truth tables: bit 4b + 2c + d is the result.
#[cfg(target_arch = "x86_64")]
pub(super) const CHOOSE: i32 = 0b1100_1010;
#[cfg(target_arch = "x86_64")]
pub(super) const PARITY: i32 = 0b1001_0110;
#[cfg(target_arch = "x86_64")]
pub(super) const LAST: i32 = 0b0011_1001;

/// What each of the four rounds rotates by, in turn.
pub(super) const TURNS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

/// The integer part of 2³² × |sin(step + 1)|.
#[rustfmt::skip]
pub(super) const SINES: [u32; 64] = [
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
];
