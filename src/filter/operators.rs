//! The operators that `pg_operator` has under the names that this module resolves, all of them: which
//! one an expression means depends on the others, too. And how one is chosen.

use std::sync::LazyLock;

/// For each name, all operators as `left right result`; `-` for the left side of a prefix operator.
const CATALOG: [(&str, &str); 19] = [
    (
        "#",
        "- path int4, box box box, - polygon int4, lseg lseg point, line line point, bit bit bit, \
         int2 int2 int2, int4 int4 int4, int8 int8 int8",
    ),
    ("#>", "jsonb _text jsonb, json _text json"),
    ("#>>", "jsonb _text text, json _text text"),
    ("%", "int8 int8 int8, int2 int2 int2, int4 int4 int4, numeric numeric numeric"),
    (
        "&",
        "bit bit bit, int2 int2 int2, int4 int4 int4, int8 int8 int8, inet inet inet, \
         macaddr macaddr macaddr, macaddr8 macaddr8 macaddr8",
    ),
    (
        "*",
        "int4 int4 int4, int2 int2 int2, int2 int4 int4, int4 int2 int4, float4 float4 float4, \
         float8 float8 float8, int8 int8 int8, int8 int4 int8, int4 int8 int8, point point point, \
         path point path, box point box, int8 int2 int8, int2 int8 int8, money float4 money, \
         float4 money money, money float8 money, money int4 money, money int2 money, float8 money money, \
         int4 money money, int2 money money, float4 float8 float8, float8 float4 float8, \
         circle point circle, interval float8 interval, float8 interval interval, \
         numeric numeric numeric, money int8 money, int8 money money, anyrange anyrange anyrange, \
         anymultirange anymultirange anymultirange",
    ),
    (
        "+",
        "int2 int2 int2, int4 int4 int4, int2 int4 int4, int4 int2 int4, float4 float4 float4, \
         float8 float8 float8, int8 int8 int8, int8 int4 int8, int4 int8 int8, point point point, \
         path path path, path point path, box point box, int8 int2 int8, int2 int8 int8, \
         money money money, _aclitem aclitem _aclitem, date interval timestamp, date int4 date, \
         float4 float8 float8, float8 float4 float8, timestamptz interval timestamptz, \
         interval interval interval, date time timestamp, date timetz timestamptz, time date timestamp, \
         timetz date timestamptz, circle point circle, numeric numeric numeric, time interval time, \
         timetz interval timetz, interval time time, - int8 int8, - int2 int2, - int4 int4, \
         - float4 float4, - float8 float8, - numeric numeric, timestamp interval timestamp, \
         interval date timestamp, interval timetz timetz, interval timestamp timestamp, \
         interval timestamptz timestamptz, int4 date date, inet int8 inet, int8 inet inet, \
         anyrange anyrange anyrange, anymultirange anymultirange anymultirange, pg_lsn numeric pg_lsn, \
         numeric pg_lsn pg_lsn",
    ),
    (
        "-",
        "- int8 int8, int2 int2 int2, int4 int4 int4, int2 int4 int4, int4 int2 int4, - int4 int4, \
         - int2 int2, - float4 float4, - float8 float8, float4 float4 float4, float8 float8 float8, \
         int8 int8 int8, int8 int4 int8, int4 int8 int8, point point point, path point path, \
         box point box, int8 int2 int8, int2 int8 int8, money money money, _aclitem aclitem _aclitem, \
         date interval timestamp, date date int4, date int4 date, float4 float8 float8, \
         float8 float4 float8, timestamptz timestamptz interval, timestamptz interval timestamptz, \
         - interval interval, interval interval interval, time time interval, circle point circle, \
         - numeric numeric, numeric numeric numeric, time interval time, timetz interval timetz, \
         timestamp timestamp interval, timestamp interval timestamp, inet int8 inet, inet inet int8, \
         pg_lsn pg_lsn numeric, jsonb text jsonb, jsonb int4 jsonb, jsonb _text jsonb, \
         anyrange anyrange anyrange, anymultirange anymultirange anymultirange, pg_lsn numeric pg_lsn",
    ),
    ("->", "jsonb text jsonb, jsonb int4 jsonb, json text json, json int4 json"),
    ("->>", "jsonb text text, jsonb int4 text, json text text, json int4 text"),
    (
        "/",
        "int2 int2 int2, int4 int4 int4, int2 int4 int4, int4 int2 int4, float4 float4 float4, \
         float8 float8 float8, int8 int8 int8, int8 int4 int8, int4 int8 int8, point point point, \
         path point path, box point box, int8 int2 int8, int2 int8 int8, money float4 money, \
         money float8 money, money int4 money, money int2 money, float4 float8 float8, \
         float8 float4 float8, circle point circle, interval float8 interval, numeric numeric numeric, \
         money int8 money, money money float8",
    ),
    ("?", "jsonb text bool"),
    ("?&", "jsonb _text bool"),
    ("?|", "point point bool, - lseg bool, - line bool, jsonb _text bool"),
    ("@", "- int8 int8, - float4 float4, - float8 float8, - int2 int2, - int4 int4, - numeric numeric"),
    ("^", "float8 float8 float8, numeric numeric numeric"),
    (
        "|",
        "bit bit bit, int2 int2 int2, int4 int4 int4, int8 int8 int8, inet inet inet, \
         macaddr macaddr macaddr, macaddr8 macaddr8 macaddr8",
    ),
    ("|/", "- float8 float8"),
    (
        "~",
        "- bit bit, - int2 int2, - int4 int4, - int8 int8, - inet inet, - macaddr macaddr, \
         - macaddr8 macaddr8",
    ),
];

/// Implicit casts between types that differ, of those that an expression may have here. The casts of
/// integers and texts to `oid` and its kin are missing: no operator above takes one.
const IMPLICIT: &str = "bpchar text, bpchar varchar, date timestamp, date timestamptz, float4 float8, \
     int2 float4, int2 float8, int2 int4, int2 int8, int2 numeric, int4 float4, int4 float8, int4 int8, \
     int4 numeric, int8 float4, int8 float8, int8 numeric, name text, numeric float4, numeric float8, \
     text bpchar, text varchar, time interval, time timetz, timestamp timestamptz, varchar bpchar, \
     varchar text";

/// One row of `pg_operator`.
#[derive(Debug)]
pub(super) struct Operator {
    pub(super) name: &'static str,
    /// None for a prefix operator.
    pub(super) left: Option<&'static str>,
    pub(super) right: &'static str,
    pub(super) result: &'static str,
}

static OPERATORS: LazyLock<Vec<Operator>> = LazyLock::new(|| {
    let row = |name, text: &'static str| {
        let mut words = text.split_whitespace();
        let mut word = || words.next().expect("three words a row");
        let left = Some(word()).filter(|left| *left != "-");
        Operator { name, left, right: word(), result: word() }
    };
    CATALOG.iter().flat_map(|(name, rows)| rows.split(',').map(|text| row(*name, text))).collect()
});

pub(super) fn all() -> impl Iterator<Item = &'static Operator> {
    OPERATORS.iter()
}

/// Whether there is an operator of that name at all.
pub(super) fn exists(name: &str, prefix: bool) -> bool {
    OPERATORS.iter().any(|operator| operator.name == name && operator.left.is_none() == prefix)
}

/// The operator that Postgres chooses for operands of these types, None inside for an untyped literal
/// (`func_select_candidate` of Postgres, and `binary_oper_exact` before it). `left` is missing for a
/// prefix operator. None: there is none, or more than one.
pub(super) fn select(
    name: &str,
    left: Option<Option<&str>>,
    right: Option<&str>,
) -> Option<&'static Operator> {
    let inputs: Vec<Option<&str>> = left.into_iter().chain([right]).collect();
    let named: Vec<&'static Operator> = OPERATORS
        .iter()
        .filter(|operator| operator.name == name && operator.left.is_some() == left.is_some())
        .collect();
    // An untyped operand is first tried as one of the type of the other.
    let same = match inputs[..] {
        [Some(known), None] | [None, Some(known)] => vec![Some(known); 2],
        _ => inputs.clone(),
    };
    let exact = |operator: &&&'static Operator| {
        arguments(operator).zip(&same).all(|(to, from)| from.is_some_and(|from| from == to))
    };
    if let Some(operator) = named.iter().find(|operator| exact(operator)) {
        return Some(operator);
    }
    let fits = |operator: &&'static Operator| {
        arguments(operator).zip(&inputs).all(|(to, from)| from.is_none_or(|from| coerces(from, to)))
    };
    let candidates: Vec<&'static Operator> = named.into_iter().filter(fits).collect();
    choose(candidates, &inputs)
}

fn choose(candidates: Vec<&'static Operator>, inputs: &[Option<&str>]) -> Option<&'static Operator> {
    let known = |to: &str, from: &Option<&str>| from.is_some_and(|from| from == to);
    let candidates = best(candidates, |operator| {
        arguments(operator).zip(inputs).filter(|(to, from)| known(to, from)).count()
    });
    let candidates = best(candidates, |operator| {
        let good = |to: &str, from: &Option<&str>| {
            from.is_some_and(|from| from == to || (category(from) == category(to) && is_preferred(to)))
        };
        arguments(operator).zip(inputs).filter(|(to, from)| good(to, from)).count()
    });
    if let [only] = candidates[..] {
        return Some(only);
    }
    if inputs.iter().all(Option::is_some) {
        return None;
    }
    let narrowed = by_category(&candidates, inputs);
    if let [only] = narrowed[..] {
        return Some(only);
    }
    // If all known operands are of one type, so are the unknown ones.
    let first = inputs.iter().flatten().next()?;
    if inputs.iter().flatten().any(|other| other != first) {
        return None;
    }
    let accepting = |operator: &&&Operator| arguments(operator).all(|to| coerces(first, to));
    match narrowed.iter().filter(accepting).collect::<Vec<_>>()[..] {
        [only] => Some(only),
        _ => None,
    }
}

/// Drops the candidates whose argument for an untyped operand is not of the category, or not the
/// preferred type of it, that the candidates agree on. Strings win a disagreement.
fn by_category(candidates: &[&'static Operator], inputs: &[Option<&str>]) -> Vec<&'static Operator> {
    let mut kept: Vec<&'static Operator> = candidates.to_vec();
    let mut rules = Vec::new();
    for (slot, _) in inputs.iter().enumerate().filter(|(_, input)| input.is_none()) {
        let types: Vec<&str> =
            candidates.iter().filter_map(|operator| arguments(operator).nth(slot)).collect();
        let agreed = if types.iter().any(|ty| category(ty) == 'S') {
            'S'
        } else {
            match types.first().map(|first| category(first)) {
                Some(first) if types.iter().all(|ty| category(ty) == first) => first,
                _ => return kept,
            }
        };
        let preferred = types.iter().any(|ty| category(ty) == agreed && is_preferred(ty));
        rules.push((slot, agreed, preferred));
    }
    kept.retain(|operator| {
        rules.iter().all(|(slot, agreed, preferred)| {
            arguments(operator)
                .nth(*slot)
                .is_some_and(|ty| category(ty) == *agreed && (!preferred || is_preferred(ty)))
        })
    });
    if kept.is_empty() { candidates.to_vec() } else { kept }
}

fn best(candidates: Vec<&'static Operator>, score: impl Fn(&Operator) -> usize) -> Vec<&'static Operator> {
    let most = candidates.iter().map(|operator| score(operator)).max().unwrap_or(0);
    candidates.into_iter().filter(|operator| score(operator) == most).collect()
}

fn arguments(operator: &Operator) -> impl Iterator<Item = &'static str> + use<> {
    operator.left.into_iter().chain([operator.right])
}

fn coerces(from: &str, to: &str) -> bool {
    from == to
        || IMPLICIT.split(',').any(|cast| {
            let mut words = cast.split_whitespace();
            words.next() == Some(from) && words.next() == Some(to)
        })
}

/// `pg_type.typcategory`, of the types above.
fn category(ty: &str) -> char {
    match ty {
        "int2" | "int4" | "int8" | "float4" | "float8" | "numeric" | "money" => 'N',
        "text" | "varchar" | "bpchar" | "name" => 'S',
        "date" | "time" | "timetz" | "timestamp" | "timestamptz" => 'D',
        "interval" => 'T',
        "bool" => 'B',
        "point" | "box" | "path" | "polygon" | "circle" | "line" | "lseg" => 'G',
        "inet" => 'I',
        "bit" => 'V',
        "anyrange" | "anymultirange" => 'P',
        "_text" | "_aclitem" => 'A',
        _ => 'U',
    }
}

/// `pg_type.typispreferred`.
fn is_preferred(ty: &str) -> bool {
    matches!(ty, "float8" | "text" | "timestamptz" | "interval" | "bool" | "inet")
}
