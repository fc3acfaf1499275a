//! Changes to an input, which follow from a seed.

/// Inputs do not grow beyond this.
const LEN_MAX: usize = 256 << 10;
/// Numbers at which lengths and counts go wrong, big-endian.
const NUMBERS: [&[u8]; 8] = [
    b"\x00",
    b"\xff",
    b"\x7f\xff",
    b"\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
];
/// Texts that mean something somewhere.
const WORDS: [&[u8]; 12] = [
    b"'",
    b"\"",
    b"$1",
    b"(",
    b"[",
    b"{",
    b"%00",
    b"&subset__where=",
    b"params[1]=",
    b"\\",
    b"\xf0\x9f\x92\xa9",
    b"-1",
];

pub struct Mutator {
    state: u64,
}

impl Mutator {
    pub fn new(seed: u64) -> Mutator {
        Mutator { state: seed }
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("below a usize")
    }

    /// One of the inputs with some changes.
    pub fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..1 + self.below(6) {
            self.change_once(&mut input, seeds);
        }
        input.truncate(LEN_MAX);
        input
    }

    fn change_once(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let end = (at + 1 + self.below(16)).min(input.len());
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.next().to_le_bytes()[0],
            2 if at < end => drop(input.drain(at..end)),
            3 => input.truncate(at),
            4 => {
                let copied = input[at..end].to_vec();
                drop(input.splice(at..at, copied.repeat(1 + self.below(64))));
            }
            5 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let end = (at + number.len()).min(input.len());
                drop(input.splice(at..end, number.iter().copied()));
            }
            6 => drop(input.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied())),
            _ => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len() + 1);
                let to = (from + self.below(64)).min(other.len());
                drop(input.splice(at..end.max(at), other[from..to].iter().copied()));
            }
        }
    }
}
