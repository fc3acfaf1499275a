//! Random clauses.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::kinds::{ENUM, Family, KINDS, Kind};

pub struct Generator {
    pub random: StdRng,
    pub params: Vec<String>,
    /// Whether to write ILIKE.
    pub ilike: bool,
    /// What the clause at hand is made of.
    pub used: Vec<&'static str>,
    /// Computed operands that may still nest.
    pub fuel: u32,
    /// Names of everything that is native.
    pub operations: Vec<String>,
}

impl Generator {
    pub fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices.choose(&mut self.random).expect("there are choices")
    }

    pub fn like_operators(&self) -> &'static [&'static str] {
        let all: &[&str; 4] = &["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"];
        if self.ilike { all } else { &all[..2] }
    }

    /// One of some operators, counted.
    pub fn operator(&mut self, choices: &[&'static str]) -> &'static str {
        let chosen = *choices.choose(&mut self.random).expect("there are choices");
        self.used.push(chosen);
        chosen
    }

    pub fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    fn kind(&mut self) -> &'static Kind {
        KINDS.choose(&mut self.random).expect("there are kinds")
    }

    pub fn quoted(&mut self, kind: &Kind) -> String {
        let value = self.pick(kind.values);
        // Only canonical SQL is compared for clauses with parameters, so they are not the rule.
        if self.chance(10) {
            self.params.push(value.to_owned());
            return format!("${}", self.params.len());
        }
        format!("'{}'", value.replace('\'', "''"))
    }

    /// An operand of a kind: a column more often than not.
    pub fn operand(&mut self, kind: &'static Kind) -> String {
        if self.fuel > 0 && self.chance(25) {
            self.fuel -= 1;
            return self.computed(kind);
        }
        match self.random.random_range(0..12) {
            0..=5 => self.pick(kind.columns).to_owned(),
            6 | 7 => self.quoted(kind),
            8 if !matches!(kind.ty, "numeric" | "bpchar" | "name" | "mood" | "numeric[]") => {
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
        if self.chance(12) {
            let number = self.random.random_range(0..self.operations.len());
            let name = self.operations[number].clone();
            return self.directed(&name);
        }
        if self.chance(30) {
            return self.special_leaf();
        }
        let kind = if self.chance(3) { &ENUM } else { self.kind() };
        let other = if kind.family == Family::Enum { kind } else { self.partner(kind) };
        self.fuel = 3;
        let left = self.operand(kind);
        match self.random.random_range(0..11) {
            0..=3 => {
                let op = self.operator(&["=", "<>", "!=", "<", "<=", ">", ">="]);
                format!("{left} {op} {}", self.operand(other))
            }
            4 => {
                let op = self.operator(&["IS DISTINCT FROM", "IS NOT DISTINCT FROM"]);
                format!("{left} {op} {}", self.operand(other))
            }
            5 | 6 => {
                let list: Vec<String> =
                    (0..self.random.random_range(1..5)).map(|_| self.operand(other)).collect();
                let op = self.operator(&["IN", "NOT IN"]);
                format!("{left} {op} ({})", list.join(", "))
            }
            7 => {
                let op =
                    self.operator(&["BETWEEN", "NOT BETWEEN", "BETWEEN SYMMETRIC", "NOT BETWEEN SYMMETRIC"]);
                format!("{left} {op} {} AND {}", self.operand(other), self.operand(kind))
            }
            8 => {
                let text = KINDS.iter().find(|kind| kind.ty == "text").expect("text is a kind");
                let text = self.partner(text);
                let (left, op) = (self.operand(text), self.operator(self.like_operators()));
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
            9 => format!("{left} {}", self.operator(&["IS NULL", "IS NOT NULL"])),
            _ => {
                let bools = KINDS.iter().find(|kind| kind.ty == "bool").expect("bool is a kind");
                let test = self.operator(&[
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
