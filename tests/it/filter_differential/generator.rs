//! Random clauses, and the values that rows and literals take.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Columns of one type, and texts that its input function takes.
pub struct Kind {
    pub ty: &'static str,
    pub columns: &'static [&'static str],
    pub values: &'static [&'static str],
    family: Family,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Number,
    Text,
    Bool,
    Uuid,
    Day,
    Time,
    Instant,
    Enum,
}

const KINDS: [Kind; 16] = [
    Kind {
        ty: "int4",
        columns: &["i4", "j4"],
        values: &["0", "1", "-1", "2", "7", "2147483647", "-2147483648"],
        family: Family::Number,
    },
    Kind {
        ty: "int2",
        columns: &["i2"],
        values: &["0", "1", "-1", "2", "32767", "-32768"],
        family: Family::Number,
    },
    Kind {
        ty: "int8",
        columns: &["i8"],
        values: &[
            "0",
            "1",
            "-1",
            "2",
            "2147483648",
            "9007199254740993",
            "9223372036854775807",
            "-9223372036854775808",
        ],
        family: Family::Number,
    },
    Kind {
        ty: "float4",
        columns: &["f4"],
        values: &[
            "0",
            "-0",
            "1",
            "0.1",
            "-1.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "3.4e38",
            "1e-40",
            "16777217",
            "1e6",
            "123456.7",
        ],
        family: Family::Number,
    },
    Kind {
        ty: "float8",
        columns: &["f8"],
        values: &[
            "0",
            "-0",
            "1",
            "0.1",
            "-1.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e300",
            "5e-324",
            "9007199254740992",
            "1e15",
            "0.00001",
            "0.0001",
        ],
        family: Family::Number,
    },
    Kind {
        ty: "numeric",
        columns: &["n", "n2"],
        values: &[
            "0",
            "1",
            "1.0",
            "1.00",
            "0.1",
            "-1.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "12345678901234567890.12345678900",
            "0.00000000000000000001",
            "9007199254740993",
            "-0.50",
            "1e30",
        ],
        family: Family::Number,
    },
    Kind {
        ty: "text",
        columns: &["t", "t2"],
        values: &[
            "",
            "a",
            "A",
            "b",
            "ab",
            "aB",
            "a ",
            " a",
            "é",
            "É",
            "éa",
            "日本",
            "a\nb",
            "50%",
            "a_b",
            "a\\b",
            "%",
            "\\",
            "İ",
            "ß",
            "ẞ",
            "Σ",
            "1",
            "-5",
            " 7 ",
            "true",
            "off",
            "NaN",
            "1e3",
            "2024-01-31",
            "10:00",
            "it's",
            "zzz",
            "\u{10348}",
            "\u{fffd}",
        ],
        family: Family::Text,
    },
    Kind {
        ty: "varchar",
        columns: &["v"],
        values: &["", "a", "a ", "A", "ab", "é", "a_b", "1", "zzz"],
        family: Family::Text,
    },
    Kind {
        ty: "bpchar",
        columns: &["c"],
        values: &["", "a", "a  ", "A", "ab", "é", "abcde", " a", "a\t"],
        family: Family::Text,
    },
    Kind {
        ty: "name",
        columns: &["nm"],
        values: &["", "a", "A", "ab", "é", "zzz", "1"],
        family: Family::Text,
    },
    Kind { ty: "bool", columns: &["b", "b2"], values: &["t", "f", "true", "false"], family: Family::Bool },
    Kind {
        ty: "uuid",
        columns: &["u", "u2"],
        values: &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "{A0EEBC99-9c0b4ef8bb6d6bb9bd380a12}",
        ],
        family: Family::Uuid,
    },
    Kind {
        ty: "date",
        columns: &["d"],
        values: &[
            "2000-01-01",
            "2024-02-29",
            "1999-12-31",
            "0044-03-15 BC",
            "infinity",
            "-infinity",
            "5874897-12-31",
            "4714-11-24 BC",
            "10000-01-01",
            "epoch",
        ],
        family: Family::Day,
    },
    Kind {
        ty: "time",
        columns: &["tm"],
        values: &["00:00:00", "24:00:00", "12:34:56.789", "12:34:56.7890001", "23:59:59.999999", "10:00"],
        family: Family::Time,
    },
    Kind {
        ty: "timestamp",
        columns: &["ts"],
        values: &[
            "2000-01-01 00:00:00",
            "2024-02-29T12:34:56.789",
            "2024-02-29 00:00:00",
            "0044-03-15 01:02:03 BC",
            "infinity",
            "-infinity",
            "294276-12-31 23:59:59.999999",
            "4714-11-24 00:00:00 BC",
            "2024-02-29 12:34:56Z",
            "epoch",
            "2024-02-29",
        ],
        family: Family::Day,
    },
    Kind {
        ty: "timestamptz",
        columns: &["tz"],
        values: &[
            "2000-01-01 00:00:00+00",
            "2024-02-29 12:34:56.789+02",
            "2024-02-29 12:34:56-05:30",
            "infinity",
            "-infinity",
            "0044-03-15 01:02:03+00 BC",
            "294276-12-31 23:59:59.999999+00",
            "2024-02-29 10:34:56.789Z",
            "2024-02-29",
        ],
        family: Family::Instant,
    },
];

const ENUM: Kind =
    Kind { ty: "mood", columns: &["m", "m2"], values: &["sad", "ok", "Ünhappy"], family: Family::Enum };

pub struct Generator {
    pub random: StdRng,
    pub params: Vec<String>,
    /// Whether to write ILIKE.
    pub ilike: bool,
}

impl Generator {
    fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices.choose(&mut self.random).expect("there are choices")
    }

    fn like_operators(&self) -> &'static [&'static str] {
        let all = &["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"];
        if self.ilike { all } else { &all[..2] }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    fn kind(&mut self) -> &'static Kind {
        KINDS.choose(&mut self.random).expect("there are kinds")
    }

    fn quoted(&mut self, kind: &Kind) -> String {
        let value = self.pick(kind.values);
        // Only canonical SQL is compared for clauses with parameters, so they are not the rule.
        if self.chance(10) {
            self.params.push(value.to_owned());
            return format!("${}", self.params.len());
        }
        format!("'{}'", value.replace('\'', "''"))
    }

    /// An operand of a kind: a column more often than not.
    fn operand(&mut self, kind: &Kind) -> String {
        match self.random.random_range(0..12) {
            0..=5 => self.pick(kind.columns).to_owned(),
            6 | 7 => self.quoted(kind),
            8 if !matches!(kind.ty, "numeric" | "bpchar" | "name" | "mood") => {
                let value = self.pick(kind.values);
                format!("'{}'::{}", value.replace('\'', "''"), kind.ty)
            }
            8 | 9 if kind.family == Family::Number => self
                .pick(&[
                    "0",
                    "1",
                    "-1",
                    "0.1",
                    "-1.5",
                    "1.0",
                    "3000000000",
                    "1e3",
                    "9007199254740993",
                    "1e-3",
                ])
                .to_owned(),
            9 if kind.family == Family::Bool => self.pick(&["true", "false"]).to_owned(),
            9 => "NULL".to_owned(),
            10 => self.cast(kind),
            _ => self.pick(kind.columns).to_owned(),
        }
    }

    /// Another kind, cast to this one.
    fn cast(&mut self, kind: &Kind) -> String {
        let from = self.kind();
        if kind.ty == "text" && self.chance(10) {
            return format!("{}::text", self.pick(ENUM.columns));
        }
        let column = self.pick(from.columns);
        if self.chance(15) {
            let through = self.kind().ty;
            return format!("{column}::{through}::{}", kind.ty);
        }
        format!("{column}::{}", kind.ty)
    }

    /// A kind that this one may be compared with.
    fn partner(&mut self, kind: &'static Kind) -> &'static Kind {
        let partners: Vec<&Kind> = KINDS.iter().filter(|other| other.family == kind.family).collect();
        if self.chance(50) { kind } else { self.pick(&partners) }
    }

    fn leaf(&mut self) -> String {
        let kind = if self.chance(3) { &ENUM } else { self.kind() };
        let other = if kind.family == Family::Enum { kind } else { self.partner(kind) };
        let left = self.operand(kind);
        match self.random.random_range(0..11) {
            0..=3 => {
                let op = self.pick(&["=", "<>", "!=", "<", "<=", ">", ">="]);
                format!("{left} {op} {}", self.operand(other))
            }
            4 => {
                let op = self.pick(&["IS DISTINCT FROM", "IS NOT DISTINCT FROM"]);
                format!("{left} {op} {}", self.operand(other))
            }
            5 | 6 => {
                let list: Vec<String> =
                    (0..self.random.random_range(1..5)).map(|_| self.operand(other)).collect();
                let op = self.pick(&["IN", "NOT IN"]);
                format!("{left} {op} ({})", list.join(", "))
            }
            7 => {
                let op = self.pick(&["BETWEEN", "NOT BETWEEN", "BETWEEN SYMMETRIC", "NOT BETWEEN SYMMETRIC"]);
                format!("{left} {op} {} AND {}", self.operand(other), self.operand(kind))
            }
            8 => {
                let text = KINDS.iter().find(|kind| kind.ty == "text").expect("text is a kind");
                let text = self.partner(text);
                let (left, op) = (self.operand(text), self.pick(self.like_operators()));
                let pattern = match self.random.random_range(0..4) {
                    0 => self.operand(text),
                    _ => self
                        .pick(&[
                            "'%'", "'a%'", "'%A'", "'_'", "'__'", "'%b%'", "'a_b'", "'a\\_b'", "'50\\%'",
                            "'%\\%'", "'É%'", "'ß'", "'a\\\\b'", "''", "'%_%'", "'σ'", "'i'", "'_ '",
                            "'日_'",
                        ])
                        .to_owned(),
                };
                format!("{left} {op} {pattern}")
            }
            9 => format!("{left} {}", self.pick(&["IS NULL", "IS NOT NULL"])),
            _ => {
                let bools = KINDS.iter().find(|kind| kind.ty == "bool").expect("bool is a kind");
                let test = self.pick(&[
                    "",
                    "IS TRUE",
                    "IS NOT TRUE",
                    "IS FALSE",
                    "IS NOT FALSE",
                    "IS UNKNOWN",
                    "IS NOT UNKNOWN",
                ]);
                format!("{} {test}", self.operand(bools))
            }
        }
    }

    pub fn clause(&mut self, depth: u32) -> String {
        if depth == 0 || self.chance(45) {
            return self.leaf();
        }
        match self.random.random_range(0..6) {
            0 | 1 => format!("({}) AND ({})", self.clause(depth - 1), self.clause(depth - 1)),
            2 | 3 => format!("({}) OR ({})", self.clause(depth - 1), self.clause(depth - 1)),
            4 => format!("NOT ({})", self.clause(depth - 1)),
            _ => format!("({}) = ({})", self.clause(depth - 1), self.clause(depth - 1)),
        }
    }
}

pub fn columns() -> impl Iterator<Item = (&'static str, &'static Kind)> {
    static ENUM_KIND: &Kind = &ENUM;
    KINDS
        .iter()
        .chain(std::iter::once(ENUM_KIND))
        .flat_map(|kind| kind.columns.iter().map(move |name| (*name, kind)))
}
