//! Random operands that are computed, and conditions on arrays and jsonb.

use rand::Rng;

use super::generator::Generator;
use super::kinds::{Family, Kind, kind};

/// Everything that a run has to have met often enough.
pub const FEATURES: &[&str] = &[
    "=",
    "<>",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "IS DISTINCT FROM",
    "IS NOT DISTINCT FROM",
    "IN",
    "NOT IN",
    "BETWEEN",
    "NOT BETWEEN",
    "BETWEEN SYMMETRIC",
    "NOT BETWEEN SYMMETRIC",
    "LIKE",
    "NOT LIKE",
    "ILIKE",
    "NOT ILIKE",
    "IS NULL",
    "IS NOT NULL",
    "IS TRUE",
    "IS NOT TRUE",
    "IS FALSE",
    "IS NOT FALSE",
    "IS UNKNOWN",
    "IS NOT UNKNOWN",
    "+",
    "-",
    "*",
    "/",
    "%",
    "^",
    "&",
    "|",
    "#",
    "unary -",
    "unary +",
    "@",
    "~",
    "|/",
    "||",
    "lower",
    "upper",
    "like()",
    "concat",
    "coalesce",
    "greatest",
    "least",
    "array_cat",
    "array_append",
    "array_prepend",
    "array_ndims",
    "justify_days",
    "justify_hours",
    "justify_interval",
    "timezone",
    "AT TIME ZONE",
    "int2()",
    "int4()",
    "int8()",
    "float4()",
    "float8()",
    "bool()",
    "uuid()",
    "int4out",
    "int8out",
    "float8out",
    "numericout",
    "dateout",
    "timestampout",
    "intervalout",
    "uuidout",
    "date + int",
    "date - int",
    "date - date",
    "date + time",
    "date + interval",
    "date - interval",
    "timestamp + interval",
    "timestamp - interval",
    "timestamp - timestamp",
    "time + interval",
    "interval + interval",
    "interval * float",
    "array || array",
    "array || element",
    "element || array",
    "subscript",
    "slice",
    "ARRAY[]",
    "@> array",
    "<@ array",
    "&& array",
    "ANY",
];

/// The same for what only exists here: jsonb and ALL.
pub const MORE_FEATURES: &[&str] =
    &["ALL", "LIKE ANY", "->", "->>", "#>", "#>>", "?", "?|", "?&", "@> jsonb", "<@ jsonb", "domain"];

const NUMBERS: [&str; 6] = ["int2", "int4", "int8", "float4", "float8", "numeric"];

impl Generator {
    fn of(&mut self, ty: &str) -> String {
        self.operand(kind(ty))
    }

    fn used(&mut self, feature: &'static str) {
        self.used.push(feature);
    }

    fn call(&mut self, name: &'static str, args: &[String]) -> String {
        self.used(name);
        format!("{name}({})", args.join(", "))
    }

    fn infix(&mut self, feature: &'static str, left: String, op: &str, right: String) -> String {
        self.used(feature);
        format!("({left} {op} {right})")
    }

    /// A value of about that kind that takes an operator or a function.
    pub fn computed(&mut self, wanted: &'static Kind) -> String {
        if wanted.family != Family::Json && self.chance(15) {
            let args: Vec<String> =
                (0..self.random.random_range(1..4)).map(|_| self.operand(wanted)).collect();
            let name = self.operator(&["coalesce", "greatest", "least"]);
            return format!("{name}({})", args.join(", "));
        }
        match wanted.family {
            Family::Number => self.number(wanted),
            Family::Text => self.text(),
            Family::Day if wanted.ty == "date" => self.date(),
            Family::Day => self.timestamp(),
            Family::Instant => self.instant(),
            Family::Time => self.time(),
            Family::Interval => self.interval(),
            Family::Json => self.json(),
            Family::Integers => self.array("int4", wanted),
            Family::Texts => self.array("text", wanted),
            Family::Numerics => self.array("numeric", wanted),
            Family::Uuid => {
                self.used("uuid()");
                let value = self.pick(wanted.values);
                format!("uuid('{value}')")
            }
            Family::Bool => {
                self.used("bool()");
                let value = self.pick(wanted.values);
                format!("bool('{value}')")
            }
            Family::Enum => self.operand(wanted),
        }
    }

    fn number(&mut self, wanted: &'static Kind) -> String {
        let other = self.pick(&NUMBERS).to_owned();
        match self.random.random_range(0..20) {
            0..=5 => {
                let (left, right) = (self.operand(wanted), self.of(&other));
                let op = self.operator(&["+", "-", "*", "/", "%"]);
                format!("({left} {op} {right})")
            }
            6 | 16..19 => {
                let integer = self.pick(&["int2", "int4", "int8"]).to_owned();
                let (left, right) = (self.of(&integer), self.of(&integer));
                let op = self.operator(&["&", "|", "#"]);
                format!("({left} {op} {right})")
            }
            7 => {
                let (left, right) =
                    (self.of("float8"), self.pick(&["2", "0.5", "-1", "0", "f8", "3"]).to_owned());
                let left = if self.chance(50) { self.pick(&["i4", "i2", "f4"]).to_owned() } else { left };
                self.infix("^", left, "^", format!("{right}::float8"))
            }
            8 => {
                let arg = self.operand(wanted);
                let op = self.operator(&["unary -", "unary +", "@", "~", "|/"]);
                format!("({} {arg})", op.trim_start_matches("unary "))
            }
            9 | 19 => {
                let arg = self.operand(wanted);
                let op = self.operator(&["|/", "~", "~", "@", "unary +", "unary +"]);
                format!("({} {arg})", op.trim_start_matches("unary "))
            }
            10 => {
                let (left, right) = (self.of("date"), self.of("date"));
                self.infix("date - date", left, "-", right)
            }
            11 => {
                let array = self.of("int4[]");
                self.call("array_ndims", &[array])
            }
            12 => {
                let (array, index) = (
                    self.pick(&["ai", "ai2", "an"]).to_owned(),
                    self.pick(&["1", "2", "0", "i2", "1][1"]).to_owned(),
                );
                self.used("subscript");
                format!("{array}[{index}]")
            }
            13 => {
                self.used("domain");
                format!("(dm + {})", self.of("int4"))
            }
            _ => {
                let name = self.operator(&["int2()", "int4()", "int8()", "float4()", "float8()"]);
                let arg = self.pick(&["'1'", "'-5'", "' 7 '", "'0'", "t"]);
                format!("{}({arg})", name.trim_end_matches("()"))
            }
        }
    }

    fn text(&mut self) -> String {
        match self.random.random_range(0..12) {
            0..=2 => {
                let (left, right) = (
                    self.of("text"),
                    self.pick(&["v", "t2", "c", "nm", "'x'", "NULL", "'a '::text"]).to_owned(),
                );
                self.infix("||", left, "||", right)
            }
            3 | 4 => {
                let arg = self.of("text");
                let name =
                    if self.ilike { self.operator(&["lower", "upper"]) } else { self.operator(&["lower"]) };
                format!("{name}({arg})")
            }
            5 => {
                let args = [self.of("text"), self.of("varchar"), self.of("bpchar")];
                self.call("concat", &args)
            }
            6 => {
                let (json, key) =
                    (self.of("jsonb"), self.pick(&["'a'", "'b'", "0", "-1", "i2", "'c'", "t"]).to_owned());
                self.infix("->>", json, "->>", key)
            }
            7 => {
                let (json, path) = (self.of("jsonb"), self.path());
                self.infix("#>>", json, "#>>", path)
            }
            8 => {
                self.used("subscript");
                format!("{}[{}]", self.pick(&["at", "at2"]), self.pick(&["1", "2", "i2"]))
            }
            _ => {
                let name = self.operator(&[
                    "int4out",
                    "int8out",
                    "float8out",
                    "numericout",
                    "dateout",
                    "timestampout",
                    "intervalout",
                    "uuidout",
                ]);
                let arg = match name {
                    "int4out" => self.of("int4"),
                    "int8out" => self.of("int8"),
                    "float8out" => self.of("float8"),
                    "numericout" => self.of("numeric"),
                    "dateout" => self.of("date"),
                    "timestampout" => self.of("timestamp"),
                    "intervalout" => self.of("interval"),
                    _ => self.of("uuid"),
                };
                format!("{name}({arg})")
            }
        }
    }

    fn path(&mut self) -> String {
        self.pick(&[
            "'{a}'",
            "'{b,1}'",
            "'{c,a}'",
            "'{0,a}'",
            "'{}'",
            "'{-1}'",
            "at",
            "ARRAY['b', '0']",
            "'{c,NULL}'",
        ])
        .to_owned()
    }

    fn date(&mut self) -> String {
        let (date, days) = (self.of("date"), self.pick(&["1", "i2", "-30", "i4"]).to_owned());
        match self.random.random_range(0..3) {
            0 => self.infix("date + int", date, "+", days),
            1 => self.infix("date + int", days, "+", date),
            _ => self.infix("date - int", date, "-", days),
        }
    }

    fn timestamp(&mut self) -> String {
        let interval = self.of("interval");
        match self.random.random_range(0..11) {
            0 | 3 => {
                let (date, time) = (self.of("date"), self.of("time"));
                self.infix("date + time", date, "+", time)
            }
            1 | 6 => {
                let date = self.of("date");
                self.infix("date + interval", date, "+", interval)
            }
            2 | 7 | 8 => {
                let date = self.of("date");
                self.infix("date - interval", date, "-", interval)
            }
            5 => {
                let stamp = self.of("timestamp");
                self.infix("timestamp + interval", stamp, "+", interval)
            }
            4 => {
                let stamp = self.of("timestamp");
                self.infix("timestamp - interval", stamp, "-", interval)
            }
            _ => {
                self.used("AT TIME ZONE");
                "(tz AT TIME ZONE 'UTC')".to_owned()
            }
        }
    }

    fn instant(&mut self) -> String {
        let (stamp, interval) = (self.of("timestamptz"), self.of("interval"));
        match self.random.random_range(0..3) {
            0 => self.infix("timestamp + interval", stamp, "+", interval),
            1 => self.infix("timestamp - interval", stamp, "-", interval),
            _ => {
                self.used("timezone");
                "timezone('utc', ts)".to_owned()
            }
        }
    }

    fn time(&mut self) -> String {
        let (time, interval) = (self.of("time"), self.of("interval"));
        let op = self.pick(&["+", "-"]).to_owned();
        self.infix("time + interval", time, &op, interval)
    }

    fn interval(&mut self) -> String {
        match self.random.random_range(0..8) {
            0 => {
                let (left, right) = (self.of("timestamp"), self.of("timestamp"));
                self.infix("timestamp - timestamp", left, "-", right)
            }
            1 => {
                let (left, right) = (self.of("timestamptz"), self.of("timestamptz"));
                self.infix("timestamp - timestamp", left, "-", right)
            }
            2 => {
                let (left, right) = (self.of("interval"), self.of("interval"));
                let op = self.pick(&["+", "-"]).to_owned();
                self.infix("interval + interval", left, &op, right)
            }
            3 => {
                let (interval, factor) =
                    (self.of("interval"), self.pick(&["2", "0.1", "-1.5", "f8", "i2", "1e9"]).to_owned());
                if self.chance(40) {
                    self.infix("interval * float", factor, "*", interval)
                } else {
                    let op = self.pick(&["*", "/"]).to_owned();
                    self.infix("interval * float", interval, &op, factor)
                }
            }
            4 => {
                let arg = self.of("interval");
                self.used("unary -");
                format!("(- {arg})")
            }
            _ => {
                let arg = self.of("interval");
                let name = self.operator(&["justify_days", "justify_hours", "justify_interval"]);
                format!("{name}({arg})")
            }
        }
    }

    fn json(&mut self) -> String {
        let json = self.of("jsonb");
        if self.chance(60) {
            let key = self.pick(&["'a'", "'b'", "'c'", "0", "-1", "2"]).to_owned();
            self.infix("->", json, "->", key)
        } else {
            let path = self.path();
            self.infix("#>", json, "#>", path)
        }
    }

    fn array(&mut self, element: &'static str, array: &'static Kind) -> String {
        match self.random.random_range(0..8) {
            0 => {
                let (left, right) = (self.operand(array), self.operand(array));
                self.infix("array || array", left, "||", right)
            }
            1 => {
                let (left, right) = (array.columns[0].to_owned(), self.of(element));
                self.infix("array || element", left, "||", right)
            }
            2 => {
                let (left, right) = (self.of(element), array.columns[0].to_owned());
                self.infix("element || array", left, "||", right)
            }
            3 => {
                let args = [self.operand(array), self.operand(array)];
                self.call("array_cat", &args)
            }
            4 => {
                let args = [self.operand(array), self.of(element)];
                self.call("array_append", &args)
            }
            5 => {
                let args = [self.of(element), self.operand(array)];
                self.call("array_prepend", &args)
            }
            6 => {
                self.used("slice");
                let bounds = self.pick(&["1:2", "2:", ":1", "0:0", ":", "i2:", "1:2][1", "1:1][2:2"]);
                format!("{}[{bounds}]", array.columns[0])
            }
            _ => {
                let elements: Vec<String> =
                    (0..self.random.random_range(1..4)).map(|_| self.of(element)).collect();
                self.used("ARRAY[]");
                format!("ARRAY[{}]", elements.join(", "))
            }
        }
    }

    /// A condition on an array or on jsonb.
    pub fn special_leaf(&mut self) -> String {
        self.fuel = 2;
        let (element, array) = match self.random.random_range(0..3) {
            0 => ("int4", kind("int4[]")),
            1 => ("text", kind("text[]")),
            _ => ("numeric", kind("numeric[]")),
        };
        match self.random.random_range(0..13) {
            10..13 => {
                let ty = self.pick(&["date", "timestamp", "timestamptz", "time", "interval"]).to_owned();
                let left = self.computed(kind(&ty));
                let (op, right) = (self.operator(&["=", "<", ">="]), self.of(&ty));
                format!("{left} {op} {right}")
            }
            0 | 1 => {
                let (left, right) = (self.operand(array), self.operand(array));
                let feature = self.operator(&["@> array", "<@ array", "&& array"]);
                format!("{left} {} {right}", feature.trim_end_matches(" array"))
            }
            2..=4 => {
                let (left, right) = (self.of(element), self.operand(array));
                let op = self.pick(&["=", "=", "<>", "<", "<=", ">", ">="]).to_owned();
                let quantifier = self.operator(&["ANY", "ALL"]);
                format!("{left} {op} {quantifier} ({right})")
            }
            5 => {
                let (left, right) = (self.of("text"), self.of("text[]"));
                let op = self.pick(self.like_operators()).to_owned();
                self.used("LIKE ANY");
                format!("{left} {op} {} ({right})", self.pick(&["ANY", "ALL"]))
            }
            6 => {
                let (left, right) = (self.of("text"), self.of("text"));
                self.call("like()", &[left, right]).replace("like()", "\"like\"")
            }
            7 => {
                let (json, key) = (self.of("jsonb"), self.pick(&["'a'", "'b'", "t", "'é'"]).to_owned());
                self.infix("?", json, "?", key)
            }
            8 => {
                let (json, keys) = (
                    self.of("jsonb"),
                    self.pick(&["'{a,b}'", "at", "ARRAY['c']", "'{}'", "'{a,NULL}'"]).to_owned(),
                );
                let op = self.operator(&["?|", "?&"]);
                format!("{json} {op} {keys}")
            }
            _ => {
                let (left, right) = (self.of("jsonb"), self.of("jsonb"));
                let feature = self.operator(&["@> jsonb", "<@ jsonb"]);
                format!("{left} {} {right}", feature.trim_end_matches(" jsonb"))
            }
        }
    }
}
