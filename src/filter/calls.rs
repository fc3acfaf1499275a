//! Operators and functions beside comparisons: which one is meant, and the types of its arguments.

use super::cast;
use super::check::is_like;
use super::error::WhereError;
use super::expr::{Call, Case, Comparison, Expr, Literal, Quantified, Spelling, Syntax, Test};
use super::function::Function;
use super::math::Bits;
use super::moment::Moments;
use super::numeric::NumericOp;
use super::operators::{self, Operator};
use super::resolve::{Item, Resolver, no_overload};
use super::structure::JsonOp;
use super::types::{Type, common_type};

/// Operators that the catalog has with polymorphic arguments, or that are resolved apart.
const POLYMORPHIC: [&str; 4] = ["||", "@>", "<@", "&&"];

pub(super) fn is_binary(operator: &str) -> bool {
    POLYMORPHIC.contains(&operator) || operators::exists(operator, false)
}

pub(super) fn is_prefix(operator: &str) -> bool {
    operators::exists(operator, true)
}

pub(super) fn call(function: Function, syntax: Syntax, args: Vec<Expr>, ty: Type, location: i32) -> Expr {
    Expr::Call(Box::new(Call { function, syntax, args, ty, location }))
}

impl Resolver<'_> {
    /// An argument of type `ty`; None where a cast would have to be spelled out.
    pub(super) fn convert(&mut self, item: Item, ty: &Type) -> Result<Option<Expr>, WhereError> {
        let location = item.location();
        Ok(match item {
            Item::Untyped(untyped) => Some(self.resolve(untyped, ty)?),
            Item::Typed { expr, .. } if expr.ty() == ty => Some(expr),
            Item::Typed { expr, .. } if expr.ty().casts_implicitly(ty) => {
                Some(Expr::Implicit { arg: Box::new(expr), to: ty.clone(), location })
            }
            Item::Typed { .. } => None,
        })
    }

    pub(super) fn binary_call(
        &mut self,
        name: &str,
        left: Item,
        right: Item,
        at: i32,
    ) -> Result<Expr, WhereError> {
        let refusal = no_overload(&left, &right, at);
        if name == "||" {
            return self.concatenation(left, right, at);
        }
        if POLYMORPHIC.contains(&name) {
            return self.containment(name, left, right, at);
        }
        let names = (left.ty().map(Type::catalog_name), right.ty().map(Type::catalog_name));
        let operator = operators::select(name, Some(names.0), names.1).ok_or_else(|| refusal.clone())?;
        let found =
            operator.left.and_then(argument).zip(argument(operator.right)).zip(argument(operator.result));
        let Some((((left_type, right_type), ty), function)) = found.zip(binary_function(operator)) else {
            return Err(refusal);
        };
        let (Some(left), Some(right)) = (self.convert(left, &left_type)?, self.convert(right, &right_type)?)
        else {
            return Err(refusal);
        };
        Ok(call(function, Syntax::Infix(operator.name), vec![left, right], ty, at))
    }

    pub(super) fn prefix_call(&mut self, name: &str, arg: Item, at: i32) -> Result<Expr, WhereError> {
        let refusal = WhereError::at(at, "Could not select an operator overload");
        let operator = operators::select(name, None, arg.ty().map(Type::catalog_name));
        let found = operator.and_then(|operator| {
            let (arg, ty) = argument(operator.right).zip(argument(operator.result))?;
            Some((prefix_function(operator)?, operator.name, arg, ty))
        });
        let Some((function, name, arg_type, ty)) = found else { return Err(refusal) };
        let arg = self.convert(arg, &arg_type)?.ok_or(refusal)?;
        Ok(call(function, Syntax::Prefix(name), vec![arg], ty, at))
    }

    /// `||` of texts, of arrays, and of an array and an element.
    fn concatenation(&mut self, left: Item, right: Item, at: i32) -> Result<Expr, WhereError> {
        let refusal = no_overload(&left, &right, at);
        let text = |item: &Item| item.ty().is_none_or(Type::is_text);
        if text(&left) && text(&right) {
            let (Some(left), Some(right)) =
                (self.convert(left, &Type::Text)?, self.convert(right, &Type::Text)?)
            else {
                return Err(refusal);
            };
            return Ok(call(Function::Concatenate, Syntax::Infix("||"), vec![left, right], Type::Text, at));
        }
        let array = |item: &Item| item.ty().is_some_and(|ty| ty.element().is_some());
        // An untyped operand beside an array is an array.
        let function = match (array(&left), array(&right)) {
            (true, true) => Function::ArrayCat,
            (true, false) if right.ty().is_none() => Function::ArrayCat,
            (false, true) if left.ty().is_none() => Function::ArrayCat,
            (true, false) => Function::ArrayAppend,
            (false, true) => Function::ArrayPrepend,
            (false, false) => return Err(refusal),
        };
        self.array_call(function, Syntax::Infix("||"), left, right, at, refusal)
    }

    /// A function of an array and an array or an element, of types that have one in common.
    pub(super) fn array_call(
        &mut self,
        function: Function,
        syntax: Syntax,
        left: Item,
        right: Item,
        at: i32,
        refusal: WhereError,
    ) -> Result<Expr, WhereError> {
        let element = |item: &Item| item.ty().map(|ty| ty.element().unwrap_or(ty).clone());
        let types = [element(&left), element(&right)];
        let known = types.iter().any(Option::is_some);
        let common = common_type(&types).filter(|ty| known && ty.may_be_element());
        let Some(common) = common else { return Err(refusal) };
        let array = Type::array_of(&common);
        let (left_type, right_type) = match function {
            Function::ArrayAppend => (&array, &common),
            Function::ArrayPrepend => (&common, &array),
            _ => (&array, &array),
        };
        let (Some(left), Some(right)) = (self.convert(left, left_type)?, self.convert(right, right_type)?)
        else {
            return Err(refusal);
        };
        Ok(call(function, syntax, vec![left, right], array, at))
    }

    fn containment(&mut self, name: &str, left: Item, right: Item, at: i32) -> Result<Expr, WhereError> {
        let refusal = no_overload(&left, &right, at);
        let ty = match (left.ty(), right.ty()) {
            (Some(left), Some(right)) if left != right => return Err(refusal),
            (Some(ty), _) | (None, Some(ty)) => ty.clone(),
            (None, None) => return Err(refusal),
        };
        let (function, name) = match (name, &ty) {
            ("@>", Type::Array(_)) => (Function::ArrayContains, "@>"),
            ("<@", Type::Array(_)) => (Function::ArrayContained, "<@"),
            ("&&", Type::Array(_)) => (Function::ArrayOverlaps, "&&"),
            ("@>", Type::Jsonb) => (Function::Json(JsonOp::Contains), "@>"),
            ("<@", Type::Jsonb) => (Function::Json(JsonOp::Contained), "<@"),
            _ => return Err(refusal),
        };
        let (Some(left), Some(right)) = (self.convert(left, &ty)?, self.convert(right, &ty)?) else {
            return Err(refusal);
        };
        Ok(call(function, Syntax::Infix(name), vec![left, right], Type::Bool, at))
    }

    /// COALESCE, GREATEST and LEAST.
    pub(super) fn common_call(
        &mut self,
        (function, name): (Function, &'static str),
        args: Vec<Item>,
        at: i32,
    ) -> Result<Expr, WhereError> {
        let types: Vec<Option<Type>> = args.iter().map(|arg| arg.ty().cloned()).collect();
        let mut refusal = WhereError::at(at, format!("{name} types cannot be matched"));
        if let Some((first, other)) = first_mismatch(&types) {
            refusal = WhereError::at(at, format!("{name} types {first} and {other} cannot be matched"));
        }
        let Some(common) = common_type(&types) else { return Err(refusal) };
        let form = super::types::Form::of_type(&common);
        let ordered = function == Function::Coalesce || form.is_some_and(super::types::Form::is_ordered);
        if form.is_none()
            || !ordered
            || (function != Function::Coalesce && matches!(common, Type::Enum { .. }))
        {
            let shown: Vec<String> = types.iter().map(shown).collect();
            let message = format!("Could not select a function overload for {}({})", name, shown.join(", "));
            return Err(WhereError::at(at, message));
        }
        if function != Function::Coalesce && common.is_text() {
            self.order_texts(at)?;
        }
        let mut converted = Vec::with_capacity(args.len());
        for arg in args {
            converted.push(self.convert(arg, &common)?.ok_or_else(|| refusal.clone())?);
        }
        Ok(call(function, Syntax::Named(name), converted, common, at))
    }

    /// `ARRAY[…]`, with the type of a cast that stands around it.
    pub(super) fn array(
        &mut self,
        items: Vec<Item>,
        target: Option<&Type>,
        at: i32,
    ) -> Result<Expr, WhereError> {
        let nested = items.iter().any(|item| item.ty().is_some_and(|ty| ty.element().is_some()));
        let types: Vec<Option<Type>> = items.iter().map(|item| item.ty().cloned()).collect();
        let mismatch = || {
            let pair =
                first_mismatch(&types).map(|(a, b)| format!("ARRAY types {a} and {b} cannot be matched"));
            WhereError::at(at, pair.unwrap_or_else(|| "ARRAY types cannot be matched".to_owned()))
        };
        let common = match target.and_then(Type::element) {
            Some(element) => {
                if nested {
                    Type::array_of(element)
                } else {
                    element.clone()
                }
            }
            None if items.is_empty() => {
                return Err(WhereError::at(at, "cannot determine type of empty array"));
            }
            None => common_type(&types).ok_or_else(mismatch)?,
        };
        let ty = match &common {
            Type::Array(_) => common.clone(),
            element if element.may_be_element() => Type::array_of(element),
            element => return Err(WhereError::at(at, format!("unsupported type {element}[]"))),
        };
        let mut args = Vec::with_capacity(items.len());
        for item in items {
            let location = item.location();
            args.push(match item {
                Item::Typed { expr, .. } if target.is_some() && *expr.ty() != common => {
                    if !cast::exists(expr.ty(), &common) {
                        let message = format!("unknown cast from type {} to type {common}", expr.ty());
                        return Err(WhereError::at(location, message));
                    }
                    Expr::Implicit { arg: Box::new(expr), to: common.clone(), location }
                }
                item => self.convert(item, &common)?.ok_or_else(mismatch)?,
            });
        }
        let syntax = if target.is_some() { Syntax::ArrayCast } else { Syntax::Array };
        Ok(call(Function::BuildArray { nested }, syntax, args, ty, at))
    }

    /// `array[i]`, `array[i:j]`: subscripts are int4.
    pub(super) fn subscripts(
        &mut self,
        array: Item,
        bounds: Vec<(Option<Item>, Option<Item>)>,
        slice: bool,
        at: i32,
    ) -> Result<Expr, WhereError> {
        let Item::Typed { expr, .. } = array else {
            return Err(WhereError::at(
                at,
                "cannot subscript type unknown because it does not support subscripting",
            ));
        };
        let Some(element) = expr.ty().element().cloned() else {
            let message =
                format!("cannot subscript type {} because it does not support subscripting", expr.ty());
            return Err(WhereError::at(at, message));
        };
        let mut shape = Vec::with_capacity(bounds.len());
        let ty = if slice { expr.ty().clone() } else { element };
        let mut args = vec![expr];
        for (low, high) in bounds {
            // A plain subscript among slices stands for `1:n`, which has no spelling of its own.
            shape.push((low.is_some(), high.is_some()));
            for bound in [low, high].into_iter().flatten() {
                let location = bound.location();
                let bound = self.convert(bound, &Type::Int4)?;
                args.push(
                    bound
                        .ok_or_else(|| WhereError::at(location, "array subscript must have type integer"))?,
                );
            }
        }
        let function = if slice { Function::Slice(shape) } else { Function::Subscript };
        Ok(call(function, Syntax::Subscripts, args, ty, at))
    }

    /// `left op ANY (array)`.
    pub(super) fn quantified(
        &mut self,
        all: bool,
        name: &str,
        left: Item,
        array: Item,
        at: i32,
    ) -> Result<Expr, WhereError> {
        let element = match array.ty() {
            None => None,
            Some(Type::Array(element)) => Some((**element).clone()),
            Some(_) => return Err(WhereError::at(at, "argument of ANY must be an array")),
        };
        // Stands for one element.
        let pretended = |ty: &Type| {
            let literal = Literal { spelling: Spelling::Null, ty: ty.clone(), location: at };
            Item::Typed { expr: Expr::Literal(literal), location: at, parameter: None }
        };
        let like = is_like(name);
        if let Some((fold_case, negated)) = like {
            let array = self.convert(array, &Type::array_of(element.as_ref().unwrap_or(&Type::Text)))?;
            let refusal = WhereError::at(at, "Could not select an operator overload");
            let textual = element.as_ref().is_none_or(Type::is_text);
            let left_fits = left.ty().is_none_or(Type::is_text);
            let Some(array) = array.filter(|_| textual && left_fits) else { return Err(refusal) };
            let left = self.coerce(left, &Type::Text)?;
            let c = left.has_c_collation() || array.has_c_collation();
            let case = match fold_case {
                false => Case::Kept,
                true => self.fold_case(c, at)?,
            };
            let test = Test::Like { case, negated };
            return Ok(Expr::Quantified(Box::new(Quantified { all, test, left, array })));
        }
        let Some(op) = Comparison::of_operator(name) else {
            let boolean = matches!(name, "@>" | "<@" | "&&" | "?" | "?|" | "?&");
            let message = if boolean {
                "Could not select an operator overload"
            } else {
                "ANY/ALL requires operator that returns bool"
            };
            return Err(WhereError::at(at, message));
        };
        let pretended = match &element {
            Some(element) => pretended(element),
            None => Item::Untyped(super::resolve::Untyped { text: None, parameter: None, location: at }),
        };
        let (form, left_type, element_type) = self.comparison(op, &left, &pretended, at)?;
        if !element_type.may_be_element() {
            return Err(no_overload(&left, &pretended, at));
        }
        let left = self.coerce(left, &left_type)?;
        let array = self.coerce(array, &Type::array_of(&element_type))?;
        Ok(Expr::Quantified(Box::new(Quantified { all, test: Test::Compare { op, form }, left, array })))
    }
}

pub(super) fn shown(ty: &Option<Type>) -> String {
    ty.as_ref().map_or("unknown".to_owned(), ToString::to_string)
}

fn first_mismatch(types: &[Option<Type>]) -> Option<(Type, Type)> {
    let mut known = types.iter().flatten();
    let first = known.next()?;
    let other = known.find(|other| common_type(&[Some(first.clone()), Some((*other).clone())]).is_none())?;
    Some((first.clone(), other.clone()))
}

/// The type of an operand in the catalog, where it is supported.
fn argument(name: &str) -> Option<Type> {
    match name {
        "_text" => Some(Type::array_of(&Type::Text)),
        name => Type::of_name(name),
    }
}

/// Whether an operator of the catalog is evaluated here.
pub(super) fn is_native(operator: &Operator) -> bool {
    let typed = operator.left.is_none_or(|left| argument(left).is_some())
        && argument(operator.right).is_some()
        && argument(operator.result).is_some();
    let function =
        if operator.left.is_some() { binary_function(operator) } else { prefix_function(operator) };
    typed && function.is_some()
}

fn prefix_function(operator: &Operator) -> Option<Function> {
    Some(match (operator.name, operator.right) {
        ("+", _) => Function::Identity,
        ("-", _) => Function::Negate,
        ("@", "int2" | "int4" | "int8" | "float4" | "float8" | "numeric") => Function::Absolute,
        ("~", "int2" | "int4" | "int8") => Function::Bits(Bits::Not),
        ("|/", "float8") => Function::SquareRoot,
        _ => return None,
    })
}

fn binary_function(operator: &Operator) -> Option<Function> {
    let number = |name: &str| matches!(name, "int2" | "int4" | "int8" | "float4" | "float8" | "numeric");
    let integer = |name: &str| matches!(name, "int2" | "int4" | "int8");
    let (left, right) = (operator.left?, operator.right);
    let op = match operator.name {
        "+" => Some(NumericOp::Add),
        "-" => Some(NumericOp::Subtract),
        "*" => Some(NumericOp::Multiply),
        "/" => Some(NumericOp::Divide),
        "%" => Some(NumericOp::Remainder),
        _ => None,
    };
    if let Some(op) = op.filter(|_| number(left) && number(right)) {
        return Some(Function::Arithmetic(op));
    }
    let bits = match operator.name {
        "&" => Some(Bits::And),
        "|" => Some(Bits::Or),
        "#" => Some(Bits::Xor),
        _ => None,
    };
    if let Some(bits) = bits {
        return (integer(left) && integer(right)).then_some(Function::Bits(bits));
    }
    if let ("^", "float8", "float8") = (operator.name, left, right) {
        return Some(Function::Power);
    }
    if left == "jsonb" {
        return json_function(operator.name).map(Function::Json);
    }
    moments(operator.name, left, right).map(Function::Moments)
}

fn json_function(name: &str) -> Option<JsonOp> {
    Some(match name {
        "->" => JsonOp::Get { text: false },
        "->>" => JsonOp::Get { text: true },
        "#>" => JsonOp::Path { text: false },
        "#>>" => JsonOp::Path { text: true },
        "?" => JsonOp::Has,
        "?|" => JsonOp::HasAny,
        "?&" => JsonOp::HasAll,
        _ => return None,
    })
}

fn moments(name: &str, left: &str, right: &str) -> Option<Moments> {
    let swapped = true;
    Some(match (name, left, right) {
        ("+", "date", "int4") => Moments::DatePlusDays { swapped: false },
        ("+", "int4", "date") => Moments::DatePlusDays { swapped },
        ("-", "date", "int4") => Moments::DateMinusDays,
        ("-", "date", "date") => Moments::DateMinusDate,
        ("+", "date", "time") => Moments::DatePlusTime { swapped: false },
        ("+", "time", "date") => Moments::DatePlusTime { swapped },
        ("+", "date", "interval") => Moments::DatePlusInterval { swapped: false },
        ("+", "interval", "date") => Moments::DatePlusInterval { swapped },
        ("-", "date", "interval") => Moments::DateMinusInterval,
        ("+", "time", "interval") => Moments::TimePlusInterval { swapped: false },
        ("+", "interval", "time") => Moments::TimePlusInterval { swapped },
        ("-", "time", "interval") => Moments::TimeMinusInterval,
        ("-", "time", "time") => Moments::TimeMinusTime,
        ("+", "timestamp" | "timestamptz", "interval") => Moments::StampPlusInterval { swapped: false },
        ("+", "interval", "timestamp" | "timestamptz") => Moments::StampPlusInterval { swapped },
        ("-", "timestamp" | "timestamptz", "interval") => Moments::StampMinusInterval,
        ("-", "timestamp", "timestamp") | ("-", "timestamptz", "timestamptz") => Moments::StampMinusStamp,
        ("+", "interval", "interval") => Moments::IntervalPlus,
        ("-", "interval", "interval") => Moments::IntervalMinus,
        ("*", "interval", "float8") => Moments::IntervalTimes { swapped: false },
        ("*", "float8", "interval") => Moments::IntervalTimes { swapped },
        ("/", "interval", "float8") => Moments::IntervalDivide,
        _ => return None,
    })
}
