//! Where a run takes its choices from: a seed, or bytes that proptest shrinks.

pub enum Choices {
    /// Xorshift64*: <https://doi.org/10.18637/jss.v008.i14>. Never zero.
    Seeded(u64),
    Bytes {
        bytes: Vec<u8>,
        at: usize,
    },
}

impl Choices {
    pub fn seeded(seed: u64) -> Choices {
        // Neighbouring seeds must not give neighbouring sequences.
        let mixed = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Choices::Seeded((mixed ^ (mixed >> 29)) | 1)
    }

    pub fn bytes(bytes: Vec<u8>) -> Choices {
        Choices::Bytes { bytes, at: 0 }
    }

    /// Bytes that have run out choose zero for ever, the least eventful choice everywhere.
    pub fn exhausted(&self) -> bool {
        match self {
            Choices::Seeded(_) => false,
            Choices::Bytes { bytes, at } => *at >= bytes.len(),
        }
    }

    /// A number in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "a choice of nothing");
        let number = match self {
            Choices::Seeded(state) => {
                *state ^= *state >> 12;
                *state ^= *state << 25;
                *state ^= *state >> 27;
                state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33
            }
            Choices::Bytes { bytes, at } => {
                let width = if n <= 256 { 1 } else { 3 };
                let mut number = 0;
                for _ in 0..width {
                    number = number << 8 | bytes.get(*at).copied().map_or(0, u64::from);
                    *at += 1;
                }
                number
            }
        };
        usize::try_from(number % n as u64).expect("below a usize")
    }

    /// True this often of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) >= 100 - percent
    }

    /// One of these; `None` where there is none.
    pub fn one<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())]) }
    }
}
