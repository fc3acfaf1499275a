//! Clauses with one operation that is asked for by its name in `native_operations`.

use rand::Rng;

use super::generator::Generator;
use super::kinds::{ENUM, kind};

/// Types of `pg_type`, where they have another name among the kinds.
fn type_name(name: &str) -> &str {
    match name {
        "_text" => "text[]",
        name => name,
    }
}

impl Generator {
    /// A condition that contains the operation. Every operation has to have one: there is no default.
    pub fn directed(&mut self, name: &str) -> String {
        if let Some(expr) = self.named(name) {
            return expr;
        }
        if let Some((form, op)) =
            name.split_once(' ').filter(|(form, _)| form.starts_with(char::is_uppercase))
        {
            let (left, right) = self.of_form(form);
            return format!("{left} {op} {right}");
        }
        // An expression of some type, compared with another one like it.
        let (left, right) = (self.expression(name), self.expression(name));
        format!("({left}) {} ({right})", self.pick(&["IS DISTINCT FROM", "IS NOT DISTINCT FROM"]))
    }

    fn expression(&mut self, name: &str) -> String {
        if let Some((from, to)) = name.split_once("::") {
            let integer = from.starts_with("int") && from != "interval";
            let by_function = to == "numeric" || (from == "bpchar" && !matches!(to, "text" | "varchar"));
            let from = self.column_of(from);
            if integer && to == "numeric" {
                return format!("numericout({from})");
            }
            if by_function {
                return format!("\"{to}\"({from})");
            }
            return format!("{from}::{to}");
        }
        if let Some(function) = name.strip_suffix("()") {
            return self.function(function);
        }
        let words: Vec<&str> = name.split(' ').collect();
        match words[..] {
            [op, right] => format!("{op} {}", self.column_of(right)),
            [left, op, right] => {
                let (left, right) = (self.argument(left), self.argument(right));
                format!("{left} {op} {right}")
            }
            _ => panic!("there is no clause for {name}"),
        }
    }

    fn function(&mut self, name: &str) -> String {
        let array = self.pick(&["ai", "ai2"]).to_owned();
        let interval = self.column_of("interval");
        match name {
            "lower" | "upper" => format!("{name}({})", self.column_of("text")),
            "concat" => format!(
                "concat({}, {}, {})",
                self.column_of("text"),
                self.column_of("bpchar"),
                self.column_of("name")
            ),
            "array_cat" => format!("array_cat({array}, {})", self.column_of("int4[]")),
            "array_append" => format!("array_append({array}, {})", self.column_of("int4")),
            "array_prepend" => format!("array_prepend({}, {array})", self.column_of("int4")),
            "array_ndims" => format!("array_ndims({array})"),
            "justify_days" | "justify_hours" | "justify_interval" => format!("{name}({interval})"),
            "timezone" => format!("timezone('UTC', {})", self.column_of("timestamptz")),
            "coalesce" | "greatest" | "least" => {
                let ty = self.pick(&["int4", "text", "numeric", "timestamp", "uuid", "interval"]).to_owned();
                format!("{name}({}, {})", self.column_of(&ty), self.operand(kind(&ty)))
            }
            _ => panic!("there is no call of {name}"),
        }
    }

    /// A column of a type, or a literal of it.
    fn argument(&mut self, ty: &str) -> String {
        let kind = kind(type_name(ty));
        let literal = !matches!(ty, "numeric" | "bpchar" | "name");
        if literal && self.random.random_ratio(1, 4) {
            let value = self.pick(kind.values).replace('\'', "''");
            return format!("'{value}'::{}", kind.ty);
        }
        self.column_of(ty)
    }

    fn column_of(&mut self, ty: &str) -> String {
        self.pick(kind(type_name(ty)).columns).to_owned()
    }

    fn of_form(&mut self, form: &str) -> (String, String) {
        let pairs: &[(&str, &str)] = match form {
            "Bool" => &[("bool", "bool")],
            "Integer" => &[("int4", "int8"), ("int2", "int4"), ("int8", "int8")],
            "Numeric" => &[("numeric", "int4"), ("int8", "numeric"), ("numeric", "numeric")],
            "Float" => &[("float8", "numeric"), ("float4", "int4"), ("float8", "float4")],
            "Text" => &[("text", "varchar"), ("name", "text"), ("text", "text"), ("mood", "mood")],
            "Blanks" => &[("bpchar", "bpchar")],
            "Uuid" => &[("uuid", "uuid")],
            "Date" => &[("date", "date")],
            "Time" => &[("time", "time")],
            "Timestamp" => &[("timestamp", "date"), ("timestamp", "timestamp")],
            "Timestamptz" => &[("timestamptz", "timestamptz")],
            "Interval" => &[("interval", "interval"), ("interval", "time")],
            "Array" => &[("int4[]", "int4[]"), ("text[]", "text[]"), ("numeric[]", "numeric[]")],
            "Json" => &[("jsonb", "jsonb")],
            _ => panic!("there is no form {form}"),
        };
        let (left, right) = pairs[self.random.random_range(0..pairs.len())];
        if left == "mood" {
            return (self.pick(ENUM.columns).to_owned(), self.pick(ENUM.columns).to_owned());
        }
        let left = self.column_of(left);
        let right =
            if self.random.random_ratio(1, 2) { self.quoted(kind(right)) } else { self.argument(right) };
        (left, right)
    }

    /// Operations with a syntax of their own.
    fn named(&mut self, name: &str) -> Option<String> {
        let (left, right) = (self.column_of("int4"), self.column_of("int4"));
        let (text, array) = (self.column_of("text"), self.column_of("int4[]"));
        let like = if self.ilike { name } else { name.trim_start_matches("NOT ").trim_start_matches('I') };
        Some(match name {
            "text || text" => format!("{text} || {} = {}", self.column_of("varchar"), self.column_of("text")),
            "array || array" => {
                format!("{array} || {} = {}", self.column_of("int4[]"), self.column_of("int4[]"))
            }
            "array || element" => format!("{array} || {left} = {}", self.column_of("int4[]")),
            "element || array" => format!("{left} || {array} = {}", self.column_of("int4[]")),
            "array @> array" | "array <@ array" | "array && array" => {
                let op = name.split(' ').nth(1).expect("three words");
                let ty = self.pick(&["int4[]", "text[]", "numeric[]"]).to_owned();
                let (left, right) = (self.column_of(&ty), self.quoted(kind(&ty)));
                if self.random.random_ratio(1, 4) {
                    format!("{right} {op} {left}")
                } else {
                    format!("{left} {op} {right}")
                }
            }
            "jsonb @> jsonb" | "jsonb <@ jsonb" => {
                let op = name.split(' ').nth(1).expect("three words");
                format!("{} {op} {}", self.column_of("jsonb"), self.quoted(kind("jsonb")))
            }
            "ARRAY[]" => format!("ARRAY[{left}, {right}] = {array}"),
            "subscript" => format!("{array}[{}] = {right}", self.pick(&["1", "2", "i2", "0"])),
            "slice" => {
                format!("{array}[{}] = {}", self.pick(&["1:2", "2:", ":1", ":"]), self.column_of("int4[]"))
            }
            "= ANY" | "= ALL" => format!("{left} {name} ({array})"),
            "IS DISTINCT FROM" | "IS NOT DISTINCT FROM" => format!("{left} {name} {right}"),
            "BETWEEN" | "NOT BETWEEN" | "BETWEEN SYMMETRIC" | "NOT BETWEEN SYMMETRIC" => {
                format!("{left} {name} {} AND {right}", self.quoted(kind("int4")))
            }
            "IN" => format!("{left} IN ({right}, {})", self.quoted(kind("int4"))),
            "LIKE" | "NOT LIKE" | "ILIKE" | "NOT ILIKE" => {
                let pattern = self.pick(&["'a%'", "'%b'", "'a_'", "'É%'", "'%'", "'a\\_b'"]).to_owned();
                format!("{text} {like} {pattern}")
            }
            "LIKE ANY" | "LIKE ALL" => {
                let (like, quantifier) = name.split_once(' ').expect("two words");
                format!("{text} {like} {quantifier} ({})", self.column_of("text[]"))
            }
            "IS NULL" => format!("{left} IS NULL"),
            "IS TRUE" | "IS FALSE" | "IS UNKNOWN" => format!("({left} = {right}) {name}"),
            _ => return None,
        })
    }
}
