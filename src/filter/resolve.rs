//! Untyped literals and parameters, and the operators that give them a type.

use std::collections::BTreeMap;

use super::decode::decode_natural;
use super::error::WhereError;
use super::expr::{Between, Case, Comparison, Expr, Literal, Spelling};
use super::predicate::CaseFolding;
use super::types::{Form, Type, common_type};

/// A checked expression, or a literal that waits for its context.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Typed {
        expr: Expr,
        location: i32,
        /// The parameter that it is, where its type was fixed by an earlier use.
        parameter: Option<u32>,
    },
    Untyped(Untyped),
}

/// A string literal, NULL (`text` is None) or a parameter without a type yet.
#[derive(Clone, Debug)]
pub(super) struct Untyped {
    pub(super) text: Option<String>,
    pub(super) parameter: Option<u32>,
    pub(super) location: i32,
}

impl Item {
    pub(super) fn location(&self) -> i32 {
        match self {
            Item::Typed { location, .. } => *location,
            Item::Untyped(untyped) => untyped.location,
        }
    }

    pub(super) fn ty(&self) -> Option<&Type> {
        match self {
            Item::Typed { expr, .. } => Some(expr.ty()),
            Item::Untyped(_) => None,
        }
    }

    fn is_constant(&self) -> bool {
        match self {
            Item::Typed { expr, .. } => expr.is_constant(),
            Item::Untyped(_) => true,
        }
    }
}

/// Gives types: remembers which parameter has which.
#[derive(Clone)]
pub(super) struct Resolver<'a> {
    pub(super) params: &'a BTreeMap<u32, String>,
    resolved: BTreeMap<u32, Type>,
    /// Literals may be labels of enums, which are not checked here.
    pub(super) enum_labels: bool,
    /// Whether the order of texts is that of their bytes in the comparison at hand.
    pub(super) by_bytes: bool,
    /// How the case of letters is folded in the operation at hand.
    pub(super) case: CaseFolding,
    /// Whether collations matter for something.
    pub(super) by_collation: bool,
    /// Whether the last refusal was because of a collation that is not in the text: canonical SQL has to
    /// say so.
    pub(super) for_postgres: bool,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(params: &'a BTreeMap<u32, String>) -> Resolver<'a> {
        Resolver {
            params,
            resolved: BTreeMap::new(),
            enum_labels: false,
            by_bytes: true,
            case: CaseFolding::Letters,
            by_collation: false,
            for_postgres: false,
        }
    }

    /// A use of `$number`.
    pub(super) fn parameter(&self, number: i32, location: i32) -> Result<Item, WhereError> {
        let found =
            u32::try_from(number).ok().and_then(|n| self.params.get(&n).map(|text| (n, text.clone())));
        let Some((parameter, text)) = found else {
            return Err(WhereError::settled(location, format!("parameter ${number} was not provided")));
        };
        Ok(match self.resolved.get(&parameter) {
            Some(ty) => {
                let literal = Literal { spelling: Spelling::Typed(text), ty: ty.clone(), location };
                Item::Typed { expr: Expr::Literal(literal), location, parameter: Some(parameter) }
            }
            None => Item::Untyped(Untyped { text: Some(text), parameter: Some(parameter), location }),
        })
    }

    /// Gives an untyped literal the type of its context.
    pub(super) fn resolve(&mut self, untyped: Untyped, ty: &Type) -> Result<Expr, WhereError> {
        let Untyped { text, parameter, location } = untyped;
        let label = self.enum_labels && matches!(ty, Type::Enum { .. });
        let spelling = match (text, parameter) {
            (None, _) => Spelling::Null,
            (Some(text), _) if label => Spelling::Quoted(text),
            (Some(text), None) => Spelling::Quoted(text),
            (Some(text), Some(_)) => Spelling::Typed(text),
        };
        let literal = Literal { spelling, ty: ty.clone(), location };
        if let Some(text) =
            literal.text().filter(|text| !is_literal(text, ty) && (!label || text.contains('\0')))
        {
            return Err(WhereError::at(location, format!("invalid syntax for type {ty}: {text}")));
        }
        if let Some(parameter) = parameter {
            self.fix(parameter, ty, location)?;
        }
        Ok(Expr::Literal(literal))
    }

    /// `'text'::type` is a literal of that type.
    pub(super) fn typed_literal(&mut self, untyped: Untyped, to: &Type) -> Result<Expr, WhereError> {
        let Untyped { text, parameter, location } = untyped;
        let spelling = match text {
            None => Spelling::TypedNull,
            Some(text) if is_literal(&text, to) => Spelling::Typed(text),
            Some(text) => {
                let message = format!("could not cast value {text:?} from text to {to}");
                return Err(WhereError::at(location, message));
            }
        };
        if let Some(parameter) = parameter {
            self.fix(parameter, to, location)?;
        }
        Ok(Expr::Literal(Literal { spelling, ty: to.clone(), location }))
    }

    /// Fixes the type of a parameter.
    pub(super) fn fix(&mut self, parameter: u32, ty: &Type, location: i32) -> Result<(), WhereError> {
        let fixed = self.resolved.entry(parameter).or_insert_with(|| ty.clone());
        if fixed == ty {
            return Ok(());
        }
        Err(WhereError::settled(location, format!("type conflict for ${parameter}: {fixed} and {ty}")))
    }

    /// The expression in its own right: an untyped literal is text, but NULL has no type to offer.
    pub(super) fn settle(&mut self, item: Item) -> Result<Expr, WhereError> {
        match item {
            Item::Typed { expr, .. } => Ok(expr),
            Item::Untyped(untyped) if untyped.text.is_none() => {
                let ty = Type::other("unknown");
                Ok(Expr::Literal(Literal { spelling: Spelling::Null, ty, location: untyped.location }))
            }
            Item::Untyped(untyped) => self.resolve(untyped, &Type::Text),
        }
    }

    pub(super) fn coerce(&mut self, item: Item, ty: &Type) -> Result<Expr, WhereError> {
        match item {
            Item::Typed { expr, .. } => Ok(expr),
            Item::Untyped(untyped) => self.resolve(untyped, ty),
        }
    }

    /// The comparison between two operands, and the type that each untyped one gets.
    pub(super) fn comparison(
        &mut self,
        op: Comparison,
        left: &Item,
        right: &Item,
        at: i32,
    ) -> Result<(Form, Type, Type), WhereError> {
        let beside = |ty: &Type| match ty {
            // A varchar has no operators of its own: they are those of text.
            Type::Varchar => Type::Text,
            ty => ty.clone(),
        };
        let (left_type, right_type) = match (left.ty(), right.ty()) {
            (Some(left), Some(right)) => (left.clone(), right.clone()),
            (Some(left), None) => (left.clone(), beside(left)),
            (None, Some(right)) => (beside(right), right.clone()),
            (None, None) => (Type::Text, Type::Text),
        };
        let enums = matches!(left_type, Type::Enum { .. });
        let form = Form::of_operands(&left_type, &right_type)
            .filter(|form| !op.is_ordering() || (form.is_ordered() && !enums))
            .ok_or_else(|| no_overload(left, right, at))?;
        if op.is_ordering() && form.is_collated() {
            self.order_texts(at)?;
        }
        Ok((form, left_type, right_type))
    }

    /// Notes that texts are ordered. Only the order of bytes is evaluated here.
    pub(super) fn order_texts(&mut self, at: i32) -> Result<(), WhereError> {
        self.by_collation = true;
        if self.by_bytes {
            Ok(())
        } else {
            Err(WhereError::at(at, "the order of this collation is not supported"))
        }
    }

    /// What becomes of letters; with `c` they have the collation "C" in any case.
    pub(super) fn fold_case(&mut self, c: bool, at: i32) -> Result<Case, WhereError> {
        if c {
            return Ok(Case::FoldedAscii);
        }
        self.by_collation = true;
        match self.case {
            CaseFolding::Letters => Ok(Case::Folded),
            CaseFolding::Ascii => Ok(Case::FoldedAscii),
            CaseFolding::Other => {
                self.for_postgres = true;
                Err(WhereError::at(at, "folding the case of this collation is not supported"))
            }
        }
    }

    pub(super) fn compare(
        &mut self,
        op: Comparison,
        left: Item,
        right: Item,
        at: i32,
    ) -> Result<Expr, WhereError> {
        let (form, left_type, right_type) = self.comparison(op, &left, &right, at)?;
        let left = Box::new(self.coerce(left, &left_type)?);
        let right = Box::new(self.coerce(right, &right_type)?);
        Ok(Expr::Compare { op, form, left, right })
    }

    pub(super) fn distinct(
        &mut self,
        negated: bool,
        left: Item,
        right: Item,
        at: i32,
    ) -> Result<Expr, WhereError> {
        let (form, left_type, right_type) = self.comparison(Comparison::Equal, &left, &right, at)?;
        let left = Box::new(self.coerce(left, &left_type)?);
        let right = Box::new(self.coerce(right, &right_type)?);
        Ok(Expr::Distinct { negated, form, left, right })
    }

    /// `arg BETWEEN low AND high`: two comparisons that share one operand.
    pub(super) fn between(
        &mut self,
        (negated, symmetric): (bool, bool),
        arg: Item,
        low: Item,
        high: Item,
        at: i32,
    ) -> Result<Expr, WhereError> {
        let op = Comparison::GreaterOrEqual;
        let (low_form, arg_low, low_type) = self.comparison(op, &arg, &low, at)?;
        let (high_form, arg_high, high_type) = self.comparison(op, &arg, &high, at)?;
        // An untyped operand that the bounds pull two ways has no one printed form.
        if arg_low != arg_high {
            return Err(no_overload(&low, &high, at));
        }
        let arg = self.coerce(arg, &arg_low)?;
        let low = (low_form, self.coerce(low, &low_type)?);
        let high = (high_form, self.coerce(high, &high_type)?);
        Ok(Expr::Between(Box::new(Between { negated, symmetric, arg, low, high })))
    }

    /// `arg IN (elements)`, as Postgres resolves it: constants of a longer list first get a common
    /// type with the operand, everything else is compared on its own.
    pub(super) fn membership(&mut self, arg: Item, elements: Vec<Item>, at: i32) -> Result<Expr, WhereError> {
        let constants = || elements.iter().filter(|element| element.is_constant());
        let common = if constants().count() > 1 {
            let types: Vec<Option<Type>> =
                std::iter::once(&arg).chain(constants()).map(|item| item.ty().cloned()).collect();
            common_type(&types)
        } else {
            None
        };
        let mut arg_type: Option<Type> = None;
        let mut resolved = Vec::with_capacity(elements.len());
        for element in elements {
            let element = match &common {
                Some(common) if element.is_constant() => self.with_common_type(element, common)?,
                _ => element,
            };
            let (form, arg_here, element_type) = self.comparison(Comparison::Equal, &arg, &element, at)?;
            if arg_type.get_or_insert_with(|| arg_here.clone()) != &arg_here {
                return Err(no_overload(&arg, &element, at));
            }
            resolved.push((form, self.coerce(element, &element_type)?));
        }
        let arg_type = arg_type.ok_or_else(|| WhereError::at(at, "Could not select an operator overload"))?;
        let arg = Box::new(self.coerce(arg, &arg_type)?);
        Ok(Expr::In { arg, elements: resolved })
    }

    fn with_common_type(&mut self, element: Item, common: &Type) -> Result<Item, WhereError> {
        let location = element.location();
        let expr = match element {
            Item::Untyped(untyped) => self.resolve(untyped, common)?,
            Item::Typed { expr, parameter, .. } if expr.ty() == common => {
                return Ok(Item::Typed { expr, location, parameter });
            }
            Item::Typed { expr, .. } if expr.ty().casts_implicitly(common) => {
                Expr::Implicit { arg: Box::new(expr), to: common.clone(), location }
            }
            typed @ Item::Typed { .. } => return Err(no_overload(&typed, &typed, location)),
        };
        Ok(Item::Typed { expr, location, parameter: None })
    }

    /// `text LIKE pattern` and its kin.
    pub(super) fn like(
        &mut self,
        (fold_case, negated): (bool, bool),
        text: Item,
        pattern: Item,
        at: i32,
    ) -> Result<Expr, WhereError> {
        let textual = |item: &Item| item.ty().is_none_or(Type::is_text);
        if !textual(&text) || !textual(&pattern) {
            return Err(no_overload(&text, &pattern, at));
        }
        let text = Box::new(self.coerce(text, &Type::Text)?);
        let pattern = Box::new(self.coerce(pattern, &Type::Text)?);
        let case = match fold_case {
            false => Case::Kept,
            // The collation of `name` is "C", and it prevails over the default one of the database.
            true => self.fold_case(text.has_c_collation() || pattern.has_c_collation(), at)?,
        };
        Ok(Expr::Like { case, negated, text, pattern })
    }

    /// The expression as a condition; `what` names it in the message where it is none.
    pub(super) fn condition(&mut self, item: Item) -> Result<Expr, WhereError> {
        let location = item.location();
        let expr = self.coerce(item, &Type::Bool)?;
        if *expr.ty() == Type::Bool {
            return Ok(expr);
        }
        let what = match &expr {
            Expr::Column { name, ty, .. } => format!("reference {} of type {ty}", identifier(&[name])),
            expr => format!("expression of type {}", expr.ty()),
        };
        Err(WhereError::settled(location, format!("{what} is not castable to bool")))
    }
}

/// Whether Postgres takes that text as a literal of the type, and we read it alike. It has no zero
/// bytes in any text. The labels of an enum are not known here.
pub(super) fn is_literal(text: &str, ty: &Type) -> bool {
    let labels = |ty: &Type| matches!(ty, Type::Enum { .. });
    let known = !labels(ty) && !ty.element().is_some_and(labels) && !text.contains('\0');
    // Only from version 17 on there are infinite intervals: Postgres says whether it takes them.
    let intervals = *ty.element().unwrap_or(ty) == Type::Interval;
    known && !(intervals && text.contains("inf")) && decode_natural(text.as_bytes(), ty).is_some()
}

/// There is no such operator, or a parameter has got the wrong type before.
pub(super) fn no_overload(left: &Item, right: &Item, at: i32) -> WhereError {
    for (item, other) in [(left, right), (right, left)] {
        if let (Item::Typed { expr, location, parameter: Some(parameter) }, Some(ty)) = (item, other.ty()) {
            let message = format!("type conflict for ${parameter}: {} and {ty}", expr.ty());
            return WhereError::settled(*location, message);
        }
    }
    WhereError::at(at, "Could not select an operator overload")
}

/// A name in a message: `pg_catalog` is left out, and what is no plain lower-case word is quoted.
pub(super) fn identifier(parts: &[&str]) -> String {
    let parts = match parts {
        ["pg_catalog", name] => std::slice::from_ref(name),
        parts => parts,
    };
    let word = |name: &&str| {
        let first = name.chars().next().is_some_and(|c| c == '_' || c.is_lowercase());
        let plain = name.chars().all(|c| c == '_' || c.is_lowercase() || c.is_ascii_digit());
        if first && plain { (*name).to_owned() } else { crate::domain::quote_identifier(name) }
    };
    parts.iter().map(word).collect::<Vec<_>>().join(".")
}
