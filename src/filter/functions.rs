//! Functions by name: contract 2.7.

use super::calls::{call, shown};
use super::error::WhereError;
use super::expr::{Case, Expr, Syntax};
use super::function::Function;
use super::moment::{self, Moments};
use super::resolve::{Item, Resolver};
use super::types::Type;

/// Functions by name, beside those that are named like a type. COALESCE and its kin have a syntax of
/// their own.
pub(super) const NAMED: [&str; 13] = [
    "lower",
    "upper",
    "like",
    "ilike",
    "concat",
    "array_cat",
    "array_append",
    "array_prepend",
    "array_ndims",
    "justify_days",
    "justify_hours",
    "justify_interval",
    "timezone",
];

impl Resolver<'_> {
    /// A function by name, or None where there is none of that name and count of arguments.
    pub(super) fn function(
        &mut self,
        name: &str,
        args: Vec<Item>,
        at: i32,
    ) -> Result<Option<Expr>, WhereError> {
        let types: Vec<String> = args.iter().map(|arg| shown(&arg.ty().cloned())).collect();
        let refusal = || {
            let message = format!("Could not select a function overload for {name}({})", types.join(", "));
            WhereError::at(at, message)
        };
        let count = args.len();
        let mut args = args.into_iter();
        let mut arg = || args.next().ok_or_else(refusal);
        if !NAMED.contains(&name) {
            return if count == 1 { self.conversion(name, arg()?, at, refusal()) } else { Ok(None) };
        }
        Ok(Some(match (name, count) {
            ("lower" | "upper", 1) => {
                let arg = self.textual(arg()?)?.ok_or_else(refusal)?;
                let ascii = self.fold_case(arg.has_c_collation(), at)? == Case::FoldedAscii;
                let (function, name) = match name {
                    "lower" => (Function::Lower { ascii }, "lower"),
                    _ => (Function::Upper { ascii }, "upper"),
                };
                call(function, Syntax::Named(name), vec![arg], Type::Text, at)
            }
            ("like" | "ilike", 2) => self.like((name == "ilike", false), arg()?, arg()?, at)?,
            ("concat", 1..) => {
                let mut texts = Vec::with_capacity(count);
                for item in args {
                    let is_text = item.ty().is_none_or(Type::is_text);
                    // Its arguments are of any type and are not cast: a char(n) keeps its blanks.
                    texts.push(if is_text { self.coerce(item, &Type::Text)? } else { return Err(refusal()) });
                }
                call(Function::Concat, Syntax::Named("concat"), texts, Type::Text, at)
            }
            ("array_cat", 2) => {
                let (left, right) = (arg()?, arg()?);
                self.array_function(Function::ArrayCat, "array_cat", left, right, at, refusal())?
            }
            ("array_append", 2) => {
                let (left, right) = (arg()?, arg()?);
                self.array_function(Function::ArrayAppend, "array_append", left, right, at, refusal())?
            }
            ("array_prepend", 2) => {
                let (left, right) = (arg()?, arg()?);
                self.array_function(Function::ArrayPrepend, "array_prepend", left, right, at, refusal())?
            }
            ("array_ndims", 1) => match arg()? {
                Item::Typed { expr, .. } if expr.ty().element().is_some() => {
                    call(Function::ArrayDimensions, Syntax::Named("array_ndims"), vec![expr], Type::Int4, at)
                }
                _ => return Err(refusal()),
            },
            ("justify_days" | "justify_hours" | "justify_interval", 1) => {
                let (function, name) = match name {
                    "justify_days" => (Moments::JustifyDays, "justify_days"),
                    "justify_hours" => (Moments::JustifyHours, "justify_hours"),
                    _ => (Moments::JustifyInterval, "justify_interval"),
                };
                let arg = self.convert(arg()?, &Type::Interval)?.ok_or_else(refusal)?;
                call(Function::Moments(function), Syntax::Named(name), vec![arg], Type::Interval, at)
            }
            ("timezone", 2) => {
                let (zone, stamp) = (arg()?, arg()?);
                self.time_zone(zone, stamp, at, refusal())?
            }
            _ => return Ok(None),
        }))
    }

    fn textual(&mut self, item: Item) -> Result<Option<Expr>, WhereError> {
        if item.ty().is_none_or(Type::is_text) { self.convert(item, &Type::Text) } else { Ok(None) }
    }

    fn array_function(
        &mut self,
        function: Function,
        name: &'static str,
        left: Item,
        right: Item,
        at: i32,
        refusal: WhereError,
    ) -> Result<Expr, WhereError> {
        let array = |item: &Item| item.ty().is_none_or(|ty| ty.element().is_some());
        let fits = match function {
            Function::ArrayCat => array(&left) && array(&right),
            Function::ArrayAppend => array(&left) && (right.ty().is_none() || !array(&right)),
            _ => array(&right) && (left.ty().is_none() || !array(&left)),
        };
        if !fits {
            return Err(refusal);
        }
        self.array_call(function, Syntax::Named(name), left, right, at, refusal)
    }

    /// `timezone(zone, timestamp)` and back. Only names of UTC: the rules of others are those of the
    /// server's tables.
    fn time_zone(
        &mut self,
        zone: Item,
        stamp: Item,
        at: i32,
        refusal: WhereError,
    ) -> Result<Expr, WhereError> {
        let (function, to) = match stamp.ty() {
            Some(Type::Timestamp) => (Moments::ToZoned, Type::Timestamptz),
            Some(Type::Timestamptz) => (Moments::FromZoned, Type::Timestamp),
            _ => return Err(refusal),
        };
        let (location, zone) = (zone.location(), self.textual(zone)?.ok_or_else(|| refusal.clone())?);
        let Item::Typed { expr: stamp, .. } = stamp else { return Err(refusal) };
        match &zone {
            Expr::Literal(literal) if literal.text().is_none_or(|text| moment::is_utc(text.as_bytes())) => {}
            Expr::Literal(literal) => {
                let name = literal.text().unwrap_or_default();
                return Err(WhereError::at(location, format!("time zone \"{name}\" is not supported")));
            }
            _ => return Err(refusal),
        }
        Ok(call(Function::Moments(function), Syntax::Named("timezone"), vec![zone, stamp], to, at))
    }

    /// Functions named like types, and output functions, both of which are casts.
    fn conversion(
        &mut self,
        name: &str,
        arg: Item,
        at: i32,
        refusal: WhereError,
    ) -> Result<Option<Expr>, WhereError> {
        let output = name.strip_suffix("out").and_then(Type::of_name).filter(|ty| {
            // The text of a bool is another one when it is cast, and a timestamptz has no cast.
            !ty.is_text() && !matches!(ty, Type::Bool | Type::Timestamptz | Type::Jsonb)
        });
        if let Some(from) = output {
            let arg = match arg {
                // Its type has to be printed: a cast to text says nothing about it.
                Item::Untyped(untyped) => self.typed_literal(untyped, &from)?,
                arg => match self.convert(arg, &from)?.ok_or(refusal)? {
                    Expr::Implicit { arg, to, location } => Expr::Cast { arg, to, location },
                    same => same,
                },
            };
            return Ok(Some(Expr::Cast { arg: Box::new(arg), to: Type::Text, location: at }));
        }
        let listed = |ty: &Type| !matches!(ty, Type::Varchar | Type::Bpchar | Type::Name | Type::Jsonb);
        let Some(to) = Type::of_name(name).filter(listed) else { return Ok(None) };
        match arg {
            Item::Untyped(untyped) => self.typed_literal(untyped, &to).map(Some),
            Item::Typed { expr, .. } if expr.ty().is_text() => {
                Ok(Some(Expr::Cast { arg: Box::new(expr), to, location: at }))
            }
            Item::Typed { .. } => Err(refusal),
        }
    }
}
