//! From the tree of the grammar back to SQL, for expressions that only Postgres evaluates.
//!
//! Every construct gets parentheses or a call of its own and every name its quotes, so that one tree has
//! one text, whatever the settings of a session. What this does not print is refused: nothing is left out.

use std::collections::BTreeMap;

use rupg_sql::nodes::{
    A_Const, A_Expr, A_Expr_Kind, A_Indices, A_Indirection, BoolExpr, BoolExprType, BoolTestType,
    BooleanTest, CaseExpr, ColumnRef, FuncCall, List, MinMaxOp, Node, NullTest, NullTestType, TypeCast,
    TypeName,
};

use super::super::check::strings;
use super::super::print::print_string;
use crate::domain::{Relation, quote_identifier};

/// Words by which a text can mean the present time to the input functions of dates and times.
const PRESENT: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// Operators, and the first arguments of functions, that may be regular expressions.
const REGEX_OPERATORS: [&str; 4] = ["~", "~*", "!~", "!~*"];
const REGEX_FUNCTIONS: [&str; 9] = [
    "regexp_count",
    "regexp_instr",
    "regexp_like",
    "regexp_match",
    "regexp_matches",
    "regexp_replace",
    "regexp_split_to_array",
    "regexp_substr",
    "substring",
];

/// What an expression is made of.
#[derive(Debug, Default)]
pub(super) struct Deparsed {
    pub(super) sql: String,
    /// Names of the columns, in the order of their first use.
    pub(super) columns: Vec<String>,
    /// The same with `$1`, `$2`, … in place of the texts that might mean the present time.
    pub(super) probe: String,
    /// Where those texts are, as offsets in the parsed statement.
    pub(super) suspects: Vec<i32>,
    /// Names of functions and operators, and where they are.
    pub(super) uses: Vec<(String, i32)>,
    /// The empty text against each pattern that is constant, and where that is.
    pub(super) trials: Vec<(String, i32)>,
    /// Columns so far, as often as they are there.
    column_count: usize,
}

/// The construct has no text here, or Postgres would refuse it in a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unprintable;

pub(super) type Printed = Result<(), Unprintable>;

/// Prints an expression over the columns of a relation, parameters as untyped literals.
pub(super) fn deparse(
    node: &Node,
    params: &BTreeMap<u32, String>,
    relation: &Relation,
) -> Result<Deparsed, Unprintable> {
    let mut printer = Printer { params, relation, out: Deparsed::default() };
    printer.node(node)?;
    Ok(printer.out)
}

pub(super) struct Printer<'a> {
    params: &'a BTreeMap<u32, String>,
    relation: &'a Relation,
    out: Deparsed,
}

impl Printer<'_> {
    pub(super) fn push(&mut self, text: &str) {
        self.out.sql.push_str(text);
        self.out.probe.push_str(text);
    }

    /// What is printed from here on, if it turns out to be constant.
    fn mark(&self) -> (usize, usize) {
        (self.out.sql.len(), self.out.column_count)
    }

    /// Notes a trial of what was printed since the mark, unless there is a column in it.
    fn try_out(&mut self, (from, columns): (usize, usize), trial: impl FnOnce(&str) -> String, at: i32) {
        if columns == self.out.column_count
            && let Some(pattern) = self.out.sql.get(from..)
        {
            let trial = trial(pattern);
            self.out.trials.push((trial, at));
        }
    }

    pub(super) fn optional(&mut self, node: Option<&Node>) -> Printed {
        self.node(node.ok_or(Unprintable)?)
    }

    fn list(&mut self, list: &List) -> Printed {
        for (index, node) in list.iter().enumerate() {
            self.push(if index == 0 { "" } else { ", " });
            self.optional(node.as_ref())?;
        }
        Ok(())
    }

    pub(super) fn call(&mut self, name: &str, args: &List) -> Printed {
        self.push(name);
        self.list(args)?;
        self.push(")");
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Printed {
        match node {
            Node::A_Const(constant) => self.constant(constant),
            Node::ColumnRef(column) => self.column(column),
            Node::ParamRef(param) => {
                let number = u32::try_from(param.number).map_err(|_| Unprintable)?;
                let text = self.params.get(&number).ok_or(Unprintable)?.clone();
                self.literal(&text, param.location)
            }
            Node::TypeCast(cast) => self.cast(cast),
            Node::BoolExpr(bool_expr) => self.bool_expr(bool_expr),
            Node::A_Expr(expr) => self.operator(expr),
            Node::NullTest(test) => self.null_test(test),
            Node::BooleanTest(test) => self.truth_test(test),
            Node::CollateClause(collate) => {
                self.push("(");
                self.optional(collate.arg.as_ref())?;
                self.push(" COLLATE ");
                self.name(&collate.collname)?;
                self.push(")");
                Ok(())
            }
            Node::FuncCall(call) => self.function(call),
            Node::NamedArgExpr(arg) => {
                self.push(&quote_identifier(arg.name.as_deref().ok_or(Unprintable)?));
                self.push(" => ");
                self.optional(arg.arg.as_ref())
            }
            Node::CoalesceExpr(coalesce) => self.call("COALESCE(", &coalesce.args),
            Node::MinMaxExpr(min_max) => {
                let greatest = min_max.op == MinMaxOp::IS_GREATEST;
                self.call(if greatest { "GREATEST(" } else { "LEAST(" }, &min_max.args)
            }
            Node::A_ArrayExpr(array) => {
                self.push("ARRAY[");
                self.list(&array.elements)?;
                self.push("]");
                Ok(())
            }
            Node::RowExpr(row) => self.call("ROW(", &row.args),
            Node::A_Indirection(indirection) => self.indirection(indirection),
            Node::CaseExpr(case) => self.case(case),
            Node::XmlExpr(xml) => self.xml(xml),
            Node::XmlSerialize(xml) => self.xml_serialize(xml),
            Node::JsonObjectConstructor(json) => self.json_object(json),
            Node::JsonArrayConstructor(json) => self.json_array(json),
            Node::JsonIsPredicate(json) => self.is_json(json),
            Node::JsonParseExpr(json) => self.json_parse(json),
            Node::JsonScalarExpr(json) => self.json_scalar(json),
            Node::JsonSerializeExpr(json) => self.json_serialize(json),
            Node::JsonFuncExpr(json) => self.json_function(json),
            _ => Err(Unprintable),
        }
    }

    fn literal(&mut self, text: &str, location: i32) -> Printed {
        if text.contains('\0') {
            return Err(Unprintable);
        }
        print_string(text, &mut self.out.sql);
        let mut words = text.split(|c: char| !c.is_alphanumeric());
        if words.any(|word| PRESENT.iter().any(|present| word.eq_ignore_ascii_case(present))) {
            self.out.suspects.push(location);
            let number = self.out.suspects.len();
            self.out.probe.push_str(&format!("${number}"));
        } else {
            print_string(text, &mut self.out.probe);
        }
        Ok(())
    }

    fn constant(&mut self, constant: &A_Const) -> Printed {
        let text = match &constant.val {
            _ if constant.isnull => "NULL".to_owned(),
            Some(Node::String(text)) => return self.literal(text, constant.location),
            Some(Node::Integer(number)) if *number < 0 => format!("({number})"),
            Some(Node::Integer(number)) => number.to_string(),
            Some(Node::Float(number)) if number.starts_with('-') => format!("({number})"),
            Some(Node::Float(number)) => number.to_string(),
            Some(Node::Boolean(value)) => value.to_string(),
            // The first letter is the base: b or x.
            Some(Node::BitString(bits)) => {
                let (base, digits) = bits.split_at_checked(1).ok_or(Unprintable)?;
                format!("{base}'{digits}'")
            }
            _ => return Err(Unprintable),
        };
        self.push(&text);
        Ok(())
    }

    fn column(&mut self, column: &ColumnRef) -> Printed {
        let parts = strings(&column.fields);
        let [name] = parts[..] else { return Err(Unprintable) };
        if column.fields.len() != 1 || self.relation.column(name).is_none() {
            return Err(Unprintable);
        }
        self.out.column_count += 1;
        if !self.out.columns.iter().any(|known| known == name) {
            self.out.columns.push(name.to_owned());
        }
        self.push(&quote_identifier(name));
        Ok(())
    }

    /// A name with all its parts, in quotes.
    fn name(&mut self, parts: &List) -> Printed {
        let names = strings(parts);
        if names.is_empty() || names.len() != parts.len() {
            return Err(Unprintable);
        }
        let quoted: Vec<String> = names.into_iter().map(quote_identifier).collect();
        self.push(&quoted.join("."));
        Ok(())
    }

    fn cast(&mut self, cast: &TypeCast) -> Printed {
        self.push("CAST(");
        self.optional(cast.arg.as_ref())?;
        self.push(" AS ");
        let ty: &TypeName = cast.typeName.as_deref().ok_or(Unprintable)?;
        self.out.uses.push((strings(&ty.names).join("."), cast.location));
        self.type_name(ty)?;
        self.push(")");
        Ok(())
    }

    pub(super) fn type_name(&mut self, ty: &TypeName) -> Printed {
        if ty.setof || ty.pct_type {
            return Err(Unprintable);
        }
        self.name(&ty.names)?;
        if !ty.typmods.is_empty() {
            self.call("(", &ty.typmods)?;
        }
        // Postgres does not tell arrays by their bounds.
        if !ty.arrayBounds.is_empty() {
            self.push("[]");
        }
        Ok(())
    }

    fn bool_expr(&mut self, expr: &BoolExpr) -> Printed {
        let separator = match expr.boolop {
            BoolExprType::AND_EXPR => " AND ",
            BoolExprType::OR_EXPR => " OR ",
            _ => {
                self.push("(NOT ");
                self.list(&expr.args)?;
                self.push(")");
                return Ok(());
            }
        };
        self.push("(");
        for (index, arg) in expr.args.iter().enumerate() {
            self.push(if index == 0 { "" } else { separator });
            self.optional(arg.as_ref())?;
        }
        self.push(")");
        Ok(())
    }

    fn operator(&mut self, expr: &A_Expr) -> Printed {
        let names = strings(&expr.name);
        let operator = match names[..] {
            [operator] => operator.to_owned(),
            [schema, operator] => format!("OPERATOR({}.{operator})", quote_identifier(schema)),
            _ => return Err(Unprintable),
        };
        if let Some(name) = names.last() {
            self.out.uses.push(((*name).to_owned(), expr.location));
        }
        let negated = operator.starts_with('!') || operator == "<>";
        let not = if negated { "NOT " } else { "" };
        match expr.kind {
            A_Expr_Kind::AEXPR_OP => self.infix(expr, &operator),
            A_Expr_Kind::AEXPR_OP_ANY => self.quantified(expr, &format!("{operator} ANY")),
            A_Expr_Kind::AEXPR_OP_ALL => self.quantified(expr, &format!("{operator} ALL")),
            A_Expr_Kind::AEXPR_DISTINCT => self.infix(expr, "IS DISTINCT FROM"),
            A_Expr_Kind::AEXPR_NOT_DISTINCT => self.infix(expr, "IS NOT DISTINCT FROM"),
            A_Expr_Kind::AEXPR_NULLIF => {
                self.push("NULLIF(");
                self.optional(expr.lexpr.as_ref())?;
                self.push(", ");
                self.optional(expr.rexpr.as_ref())?;
                self.push(")");
                Ok(())
            }
            A_Expr_Kind::AEXPR_IN => self.quantified(expr, &format!("{not}IN")),
            A_Expr_Kind::AEXPR_LIKE => self.infix(expr, &format!("{not}LIKE")),
            A_Expr_Kind::AEXPR_ILIKE => self.infix(expr, &format!("{not}ILIKE")),
            A_Expr_Kind::AEXPR_SIMILAR => self.similar(expr, not),
            A_Expr_Kind::AEXPR_BETWEEN => self.between(expr, "BETWEEN"),
            A_Expr_Kind::AEXPR_NOT_BETWEEN => self.between(expr, "NOT BETWEEN"),
            A_Expr_Kind::AEXPR_BETWEEN_SYM => self.between(expr, "BETWEEN SYMMETRIC"),
            A_Expr_Kind::AEXPR_NOT_BETWEEN_SYM => self.between(expr, "NOT BETWEEN SYMMETRIC"),
            _ => Err(Unprintable),
        }
    }

    fn infix(&mut self, expr: &A_Expr, operator: &str) -> Printed {
        self.push("(");
        if let Some(left) = &expr.lexpr {
            self.node(left)?;
            self.push(" ");
        }
        self.push(operator);
        self.push(" ");
        let mark = self.mark();
        self.optional(expr.rexpr.as_ref())?;
        if is_regex(expr) {
            self.try_out(mark, |pattern| format!("('' {operator} {pattern})"), expr.location);
        }
        self.push(")");
        Ok(())
    }

    /// An operator whose right side stands in parentheses: a list, or one expression.
    fn quantified(&mut self, expr: &A_Expr, operator: &str) -> Printed {
        self.push("(");
        self.optional(expr.lexpr.as_ref())?;
        self.push(" ");
        self.push(operator);
        self.push(" (");
        let mark = self.mark();
        match &expr.rexpr {
            Some(Node::List(list)) => self.list(list)?,
            other => self.optional(other.as_ref())?,
        }
        if is_regex(expr) {
            self.try_out(mark, |patterns| format!("('' {operator} ({patterns}))"), expr.location);
        }
        self.push("))");
        Ok(())
    }

    /// The grammar wraps the pattern in a function that SQL has no other name for.
    fn similar(&mut self, expr: &A_Expr, not: &str) -> Printed {
        let Some(Node::FuncCall(wrapped)) = &expr.rexpr else { return Err(Unprintable) };
        let mut args = wrapped.args.iter();
        let (pattern, escape) = (args.next().and_then(Option::as_ref), args.next().and_then(Option::as_ref));
        self.push("(");
        self.optional(expr.lexpr.as_ref())?;
        self.push(&format!(" {not}SIMILAR TO "));
        let mark = self.mark();
        self.optional(pattern)?;
        if let Some(escape) = escape {
            self.push(" ESCAPE ");
            self.node(escape)?;
        }
        self.try_out(mark, |pattern| format!("('' SIMILAR TO {pattern})"), expr.location);
        self.push(")");
        Ok(())
    }

    fn between(&mut self, expr: &A_Expr, operator: &str) -> Printed {
        let Some(Node::List(bounds)) = &expr.rexpr else { return Err(Unprintable) };
        let [Some(low), Some(high)] = &bounds[..] else { return Err(Unprintable) };
        self.push("(");
        self.optional(expr.lexpr.as_ref())?;
        self.push(&format!(" {operator} "));
        self.node(low)?;
        self.push(" AND ");
        self.node(high)?;
        self.push(")");
        Ok(())
    }

    fn null_test(&mut self, test: &NullTest) -> Printed {
        self.push("(");
        self.optional(test.arg.as_ref())?;
        let negated = test.nulltesttype == NullTestType::IS_NOT_NULL;
        self.push(if negated { " IS NOT NULL)" } else { " IS NULL)" });
        Ok(())
    }

    fn truth_test(&mut self, test: &BooleanTest) -> Printed {
        self.push("(");
        self.optional(test.arg.as_ref())?;
        self.push(match test.booltesttype {
            BoolTestType::IS_TRUE => " IS TRUE)",
            BoolTestType::IS_NOT_TRUE => " IS NOT TRUE)",
            BoolTestType::IS_FALSE => " IS FALSE)",
            BoolTestType::IS_NOT_FALSE => " IS NOT FALSE)",
            BoolTestType::IS_UNKNOWN => " IS UNKNOWN)",
            _ => " IS NOT UNKNOWN)",
        });
        Ok(())
    }

    /// Functions with a syntax of their own (EXTRACT, SUBSTRING, AT TIME ZONE, …) are calls, too.
    fn function(&mut self, call: &FuncCall) -> Printed {
        let plain = call.agg_order.is_empty()
            && call.agg_filter.is_none()
            && call.over.is_none()
            && call.ignore_nulls == 0
            && !call.agg_within_group
            && !call.agg_star
            && !call.agg_distinct;
        if !plain {
            return Err(Unprintable);
        }
        if let Some(name) = strings(&call.funcname).last() {
            self.out.uses.push(((*name).to_owned(), call.location));
        }
        let name = self.mark().0;
        self.name(&call.funcname)?;
        let name = self.out.sql.get(name..).unwrap_or_default().to_owned();
        self.push("(");
        let mut rest = None;
        for (index, arg) in call.args.iter().enumerate() {
            self.push(if index == 0 { "" } else { ", " });
            let variadic = call.func_variadic && index + 1 == call.args.len();
            self.push(if variadic { "VARIADIC " } else { "" });
            rest = if index == 1 { Some(self.mark()) } else { rest };
            self.optional(arg.as_ref())?;
        }
        if let Some(mark) = rest.filter(|_| has_pattern(call)) {
            self.try_out(mark, |rest| format!("{name}('', {rest})"), call.location);
        }
        self.push(")");
        Ok(())
    }

    fn indirection(&mut self, indirection: &A_Indirection) -> Printed {
        self.push("(");
        self.optional(indirection.arg.as_ref())?;
        self.push(")");
        for step in indirection.indirection.iter().flatten() {
            match step {
                Node::String(field) => {
                    self.push(".");
                    self.push(&quote_identifier(field));
                }
                Node::A_Indices(indices) => self.indices(indices)?,
                _ => return Err(Unprintable),
            }
        }
        Ok(())
    }

    fn indices(&mut self, indices: &A_Indices) -> Printed {
        self.push("[");
        if let Some(low) = &indices.lidx {
            self.node(low)?;
        }
        if indices.is_slice {
            // Spaces: a colon and what follows must not be read as a cast or a parameter.
            self.push(" : ");
        }
        if let Some(high) = &indices.uidx {
            self.node(high)?;
        }
        self.push("]");
        Ok(())
    }

    fn case(&mut self, case: &CaseExpr) -> Printed {
        self.push("(CASE");
        if let Some(arg) = &case.arg {
            self.push(" ");
            self.node(arg)?;
        }
        for when in case.args.iter().flatten() {
            let Node::CaseWhen(when) = when else { return Err(Unprintable) };
            self.push(" WHEN ");
            self.optional(when.expr.as_ref())?;
            self.push(" THEN ");
            self.optional(when.result.as_ref())?;
        }
        if let Some(other) = &case.defresult {
            self.push(" ELSE ");
            self.node(other)?;
        }
        self.push(" END)");
        Ok(())
    }
}

fn is_regex(expr: &A_Expr) -> bool {
    strings(&expr.name).last().is_some_and(|name| REGEX_OPERATORS.contains(name))
}

/// Whether the second argument may be a regular expression.
fn has_pattern(call: &FuncCall) -> bool {
    let named = call.args.iter().flatten().any(|arg| matches!(arg, Node::NamedArgExpr(_)));
    !named && strings(&call.funcname).last().is_some_and(|name| REGEX_FUNCTIONS.contains(name))
}
