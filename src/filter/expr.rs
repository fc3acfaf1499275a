//! The typed tree of a clause: every operator resolved, every literal with its type, and still the
//! spelling of the client where that is part of the identity of a shape.

use std::sync::Arc;

use super::delegated::Delegated;
use super::function::Function;
use super::types::{Form, Type};

/// An expression whose type is known.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    /// `slot` numbers the columns that the clause uses.
    Column {
        slot: usize,
        name: String,
        ty: Type,
        /// Of a domain over that type, or an array of such: Postgres has no array operators for it, so
        /// it is printed with a cast.
        domain: bool,
    },
    Literal(Literal),
    /// A cast that the clause spells out.
    Cast {
        arg: Box<Expr>,
        to: Type,
        location: i32,
    },
    /// A cast that Postgres adds; it is not printed.
    Implicit {
        arg: Box<Expr>,
        to: Type,
        location: i32,
    },
    Compare {
        op: Comparison,
        form: Form,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    Distinct {
        negated: bool,
        form: Form,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    Between(Box<Between>),
    /// `arg IN (elements)`, with the form in which each element is compared.
    In {
        arg: Box<Expr>,
        elements: Vec<(Form, Expr)>,
    },
    Like {
        case: Case,
        negated: bool,
        text: Box<Expr>,
        pattern: Box<Expr>,
    },
    /// `left op ANY (array)` and its kin.
    Quantified(Box<Quantified>),
    /// An operator or a function without a form of its own here.
    Call(Box<Call>),
    /// For Postgres; the slots are those of its columns.
    Delegated {
        delegated: Arc<Delegated>,
        slots: Vec<usize>,
    },
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    IsNull {
        negated: bool,
        arg: Box<Expr>,
    },
    IsTruth {
        truth: Truth,
        negated: bool,
        arg: Box<Expr>,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Quantified {
    /// ALL, not ANY.
    pub(super) all: bool,
    pub(super) test: Test,
    pub(super) left: Expr,
    pub(super) array: Expr,
}

/// What is asked about each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Compare { op: Comparison, form: Form },
    Like { case: Case, negated: bool },
}

/// Arguments have the types that the function takes.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) function: Function,
    pub(super) syntax: Syntax,
    pub(super) args: Vec<Expr>,
    pub(super) ty: Type,
    pub(super) location: i32,
}

/// How a call is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Infix(&'static str),
    Prefix(&'static str),
    Named(&'static str),
    /// `ARRAY[…]`.
    Array,
    /// `ARRAY[…]::type[]`, which gives the elements their type.
    ArrayCast,
    /// `a[…]`.
    Subscripts,
}

#[derive(Clone, Debug)]
pub(super) struct Literal {
    pub(super) spelling: Spelling,
    pub(super) ty: Type,
    /// Byte offset in the parsed statement, for messages.
    pub(super) location: i32,
}

/// How a literal is written. `1`, `'1'` and `'1'::int4` are three identities: contract 1.8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    Number(String),
    Truth(bool),
    /// A string without a type of its own.
    Quoted(String),
    /// `'text'::type`.
    Typed(String),
    Null,
    /// `NULL::type`.
    TypedNull,
}

#[derive(Clone, Debug)]
pub(super) struct Between {
    pub(super) negated: bool,
    pub(super) symmetric: bool,
    pub(super) arg: Expr,
    pub(super) low: (Form, Expr),
    pub(super) high: (Form, Expr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What LIKE and ILIKE do about the case of letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Kept,
    /// All letters of Unicode.
    Folded,
    /// ASCII letters only: what ILIKE does under the collation "C".
    FoldedAscii,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    Unknown,
}

impl Comparison {
    pub(super) fn of_operator(operator: &str) -> Option<Comparison> {
        Some(match operator {
            "=" => Comparison::Equal,
            "<>" => Comparison::NotEqual,
            "<" => Comparison::Less,
            "<=" => Comparison::LessOrEqual,
            ">" => Comparison::Greater,
            ">=" => Comparison::GreaterOrEqual,
            _ => return None,
        })
    }

    pub(super) fn operator(self) -> &'static str {
        match self {
            Comparison::Equal => "=",
            Comparison::NotEqual => "<>",
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
        }
    }

    /// The comparison with its sides exchanged.
    pub(super) fn mirrored(self) -> Comparison {
        match self {
            Comparison::Less => Comparison::Greater,
            Comparison::LessOrEqual => Comparison::GreaterOrEqual,
            Comparison::Greater => Comparison::Less,
            Comparison::GreaterOrEqual => Comparison::LessOrEqual,
            same => same,
        }
    }

    /// Whether it asks for an order, not only for equality.
    pub(super) fn is_ordering(self) -> bool {
        !matches!(self, Comparison::Equal | Comparison::NotEqual)
    }
}

impl Literal {
    /// The text that the input function of the type reads; None for NULL.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.spelling {
            Spelling::Number(text) | Spelling::Quoted(text) | Spelling::Typed(text) => Some(text),
            Spelling::Truth(true) => Some("t"),
            Spelling::Truth(false) => Some("f"),
            Spelling::Null | Spelling::TypedNull => None,
        }
    }
}

impl Expr {
    pub(super) fn ty(&self) -> &Type {
        match self {
            Expr::Column { ty, .. } | Expr::Cast { to: ty, .. } | Expr::Implicit { to: ty, .. } => ty,
            Expr::Literal(literal) => &literal.ty,
            Expr::Call(call) => &call.ty,
            Expr::Compare { .. }
            | Expr::Distinct { .. }
            | Expr::Between(_)
            | Expr::In { .. }
            | Expr::Like { .. }
            | Expr::Quantified(_)
            | Expr::Delegated { .. }
            | Expr::And(_)
            | Expr::Or(_)
            | Expr::Not(_)
            | Expr::IsNull { .. }
            | Expr::IsTruth { .. } => &Type::Bool,
        }
    }

    /// Whether its text, or that in its array, stems from a value of type `name`, and so has the
    /// collation "C". Another collation than the default one prevails, wherever it comes from.
    pub(super) fn has_c_collation(&self) -> bool {
        let collatable = |ty: &Type| ty.element().unwrap_or(ty).is_text();
        match self {
            Expr::Cast { arg, .. } | Expr::Implicit { arg, .. } if collatable(arg.ty()) => {
                arg.has_c_collation()
            }
            Expr::Call(call) if collatable(&call.ty) => {
                // What is ordered is printed with "C".
                matches!(call.function, Function::Greatest | Function::Least)
                    || call.args.iter().any(Expr::has_c_collation)
            }
            expr => *expr.ty().element().unwrap_or(expr.ty()) == Type::Name,
        }
    }

    /// Whether Postgres has to be asked about it.
    pub(super) fn is_delegated(&self) -> bool {
        match self {
            Expr::Delegated { .. } => true,
            Expr::And(args) | Expr::Or(args) => args.iter().any(Expr::is_delegated),
            Expr::Not(arg) | Expr::IsTruth { arg, .. } | Expr::IsNull { arg, .. } => arg.is_delegated(),
            _ => false,
        }
    }

    /// Whether no column occurs in it, so that its value is known at once.
    pub(super) fn is_constant(&self) -> bool {
        match self {
            Expr::Column { .. } | Expr::Delegated { .. } => false,
            Expr::Literal(_) => true,
            Expr::Cast { arg, .. }
            | Expr::Implicit { arg, .. }
            | Expr::Not(arg)
            | Expr::IsNull { arg, .. }
            | Expr::IsTruth { arg, .. } => arg.is_constant(),
            Expr::Compare { left, right, .. } | Expr::Distinct { left, right, .. } => {
                left.is_constant() && right.is_constant()
            }
            Expr::Like { text, pattern, .. } => text.is_constant() && pattern.is_constant(),
            Expr::Between(between) => {
                between.arg.is_constant() && between.low.1.is_constant() && between.high.1.is_constant()
            }
            Expr::In { arg, elements } => {
                arg.is_constant() && elements.iter().all(|(_, element)| element.is_constant())
            }
            Expr::Quantified(quantified) => quantified.left.is_constant() && quantified.array.is_constant(),
            Expr::Call(call) => call.args.iter().all(Expr::is_constant),
            Expr::And(args) | Expr::Or(args) => args.iter().all(Expr::is_constant),
        }
    }
}
