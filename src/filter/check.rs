//! From the tree of the grammar to the typed tree: what is supported, and of which type it is.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use rupg_sql::nodes::{
    A_Const, A_Expr, A_Expr_Kind, BoolExpr, BoolExprType, BoolTestType, BooleanTest, ColumnRef, List, Node,
    NullTest, NullTestType, SubLink, SubLinkType, TypeCast, TypeName,
};

use super::decode::decode_natural;
use super::delegated::Delegated;
use super::error::WhereError;
use super::expr::{Comparison, Expr, Literal, Spelling, Truth};
use super::predicate::{CaseFolding, TextOrder, Texts};
use super::resolve::{Item, Resolver, Untyped, identifier};
use super::types::Type;
use super::{calls, cast};
use crate::domain::Relation;

/// Checks a clause against a relation.
pub(super) struct Checker<'a> {
    relation: &'a Relation,
    pub(super) resolver: Resolver<'a>,
    /// Names of the columns that occur, by slot.
    columns: Vec<String>,
    /// Reading our own canonical SQL, which uses a little more than clients may.
    canonical: bool,
    /// Whether texts are ordered by bytes without saying so.
    by_bytes: bool,
    /// Whether only Postgres can compare texts.
    opaque: bool,
    /// Leaving to Postgres what is not evaluated here.
    delegating: bool,
    delegated: Vec<Arc<Delegated>>,
}

/// The typed condition, the names of its columns by slot, and its parts that Postgres evaluates.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) expr: Expr,
    pub(super) columns: Vec<String>,
    pub(super) delegated: Vec<Arc<Delegated>>,
    /// Whether texts are compared somewhere, here or by Postgres.
    pub(super) by_collation: bool,
}

impl<'a> Checker<'a> {
    pub(super) fn new(
        relation: &'a Relation,
        params: &'a BTreeMap<u32, String>,
        canonical: bool,
    ) -> Checker<'a> {
        Checker {
            relation,
            resolver: Resolver::new(params),
            columns: Vec::new(),
            canonical,
            by_bytes: !canonical,
            opaque: false,
            delegating: false,
            delegated: Vec::new(),
        }
    }

    /// What its collations do with the texts of this table; what is not known here is for Postgres.
    pub(super) fn with_texts(mut self, texts: Texts) -> Checker<'a> {
        self.by_bytes = texts.order == TextOrder::Bytes;
        self.opaque = texts.opaque;
        self.resolver.case = texts.case;
        self
    }

    /// Canonical SQL says where texts are ordered by bytes, and where only ASCII letters are folded: on
    /// the left side.
    pub(super) fn set_order(&mut self, left: Option<&Node>) {
        let marked = matches!(left, Some(Node::CollateClause(_)));
        self.resolver.by_bytes = self.by_bytes || marked;
        if self.canonical {
            self.resolver.case = if marked { CaseFolding::Ascii } else { CaseFolding::Letters };
        }
    }

    pub(super) fn delegating(mut self) -> Checker<'a> {
        self.delegating = true;
        self
    }

    /// For clauses that only Postgres evaluates: it knows the labels.
    pub(super) fn with_enum_labels(mut self) -> Checker<'a> {
        self.resolver.enum_labels = true;
        self
    }

    /// Checks a whole clause.
    ///
    /// # Errors
    /// Whatever is not supported, or not of a fitting type.
    pub(super) fn check(mut self, clause: &Node) -> Result<Checked, WhereError> {
        let item = self.part(clause)?;
        let expr = self.resolver.settle(item)?;
        if *expr.ty() == Type::Bool {
            let (columns, delegated) = (self.columns, self.delegated);
            Ok(Checked { expr, columns, delegated, by_collation: self.resolver.by_collation })
        } else {
            Err(WhereError::NotBoolean)
        }
    }

    /// A condition, alone or between AND, OR and NOT: where it is not evaluated here, Postgres may.
    fn part(&mut self, node: &Node) -> Result<Item, WhereError> {
        // AND, OR and NOT nest: nothing of what follows may be on the stack then.
        if self.delegating && !matches!(node, Node::BoolExpr(_)) { self.leaf(node) } else { self.node(node) }
    }

    #[inline(never)]
    fn leaf(&mut self, node: &Node) -> Result<Item, WhereError> {
        let (columns, resolver) = (self.columns.len(), self.resolver.clone());
        let refusal = match self.node(node) {
            Err(refusal) if refusal.may_be_delegated() => refusal,
            result => return result,
        };
        self.columns.truncate(columns);
        let Resolver { by_collation, for_postgres, .. } = self.resolver;
        self.resolver = resolver;
        self.resolver.by_collation |= by_collation;
        let params = self.resolver.params;
        let delegated = if for_postgres {
            Delegated::marked(node, params, self.relation, refusal.clone())
        } else {
            Delegated::new(node, params, self.relation, refusal.clone())
        };
        let Some(delegated) = delegated else {
            return Err(refusal);
        };
        let slots = delegated.columns().iter().map(|(name, _)| self.slot(name)).collect();
        self.delegated.push(Arc::clone(&delegated));
        Ok(boolean(Expr::Delegated { delegated, slots }, 0))
    }

    /// The number of a column among those that the clause uses.
    fn slot(&mut self, name: &str) -> usize {
        self.columns.iter().position(|known| known == name).unwrap_or_else(|| {
            self.columns.push(name.to_owned());
            self.columns.len() - 1
        })
    }

    /// The names of the columns that have occurred, by slot.
    pub(super) fn into_columns(self) -> Vec<String> {
        self.columns
    }

    pub(super) fn node(&mut self, node: &Node) -> Result<Item, WhereError> {
        match node {
            Node::A_Const(constant) => self.constant(constant),
            Node::ColumnRef(column) => self.column(column),
            Node::ParamRef(param) => self.resolver.parameter(param.number, param.location),
            Node::TypeCast(cast) => self.cast(cast),
            Node::BoolExpr(bool_expr) => self.bool_expr(bool_expr),
            Node::A_Expr(expr) => self.operator(expr),
            Node::NullTest(test) => self.null_test(test),
            Node::BooleanTest(test) => self.truth_test(test),
            Node::CollateClause(collate) if self.canonical && strings(&collate.collname) == ["C"] => {
                self.optional(collate.arg.as_ref(), collate.location)
            }
            Node::FuncCall(call) => self.function(call),
            Node::CoalesceExpr(coalesce) => self.coalesce(coalesce),
            Node::MinMaxExpr(min_max) => self.min_max(min_max),
            Node::A_ArrayExpr(array) => self.array(array, None),
            Node::A_Indirection(indirection) => self.indirection(indirection),
            Node::SubLink(link) => Err(unsupported_sublink(link)),
            other => Err(unsupported(other)),
        }
    }

    pub(super) fn optional(&mut self, node: Option<&Node>, location: i32) -> Result<Item, WhereError> {
        let node = node.ok_or_else(|| WhereError::at(location, "expression is incomplete"))?;
        self.node(node)
    }

    pub(super) fn list(&mut self, list: &List) -> Result<Vec<Item>, WhereError> {
        list.iter().flatten().map(|node| self.node(node)).collect()
    }

    fn constant(&mut self, constant: &A_Const) -> Result<Item, WhereError> {
        let location = constant.location;
        let untyped = |text| Ok(Item::Untyped(Untyped { text, parameter: None, location }));
        let (spelling, ty) = match &constant.val {
            _ if constant.isnull => return untyped(None),
            Some(Node::String(text)) => return untyped(Some(text.to_string())),
            Some(Node::Integer(number)) => (Spelling::Number(number.to_string()), Type::Int4),
            Some(Node::Float(text)) => number(text, location)?,
            Some(Node::Boolean(value)) => (Spelling::Truth(*value), Type::Bool),
            Some(Node::BitString(_)) => {
                return Err(WhereError::at(location, "BitString values are not supported"));
            }
            _ => return Err(WhereError::at(location, "A_Const is not supported in this context")),
        };
        let expr = Expr::Literal(Literal { spelling, ty, location });
        Ok(Item::Typed { expr, location, parameter: None })
    }

    pub(super) fn number_item(text: &str, location: i32) -> Result<Item, WhereError> {
        let (spelling, ty) = number(text, location)?;
        Ok(boolean(Expr::Literal(Literal { spelling, ty, location }), location))
    }

    fn column(&mut self, column: &ColumnRef) -> Result<Item, WhereError> {
        let location = column.location;
        let parts = strings(&column.fields);
        let unknown = || WhereError::settled(location, format!("unknown reference {}", identifier(&parts)));
        if parts.len() != column.fields.len() {
            return Err(WhereError::settled(location, "A_Star is not supported in this context"));
        }
        let [name] = parts[..] else { return Err(unknown()) };
        let found = self.relation.column(name).ok_or_else(unknown)?;
        let ty = Type::of_column(found);
        if ty.element().unwrap_or(&ty).is_text() {
            self.resolver.by_collation = true;
            if self.opaque {
                self.resolver.for_postgres = true;
                return Err(WhereError::at(
                    location,
                    "texts of this collation or encoding are not supported",
                ));
            }
        }
        let slot = self.slot(name);
        // A cast to an enum would need the schema of its type.
        let labels = |ty: &Type| matches!(ty, Type::Enum { .. } | Type::Other { .. });
        let domain = found.base.is_some() && !labels(&ty) && !ty.element().is_some_and(labels);
        let expr = Expr::Column { slot, name: name.to_owned(), ty, domain };
        Ok(Item::Typed { expr, location, parameter: None })
    }

    fn cast(&mut self, cast: &TypeCast) -> Result<Item, WhereError> {
        let to = self.type_name(cast.typeName.as_deref(), cast.location);
        if let (Some(Node::A_ArrayExpr(array)), Ok(to @ Type::Array(_))) = (&cast.arg, &to) {
            return self.array(array, Some(to));
        }
        let item = self.optional(cast.arg.as_ref(), cast.location)?;
        let to = to?;
        let location = item.location();
        let expr = match item {
            Item::Untyped(untyped) => {
                let offered = self.canonical || matches!(to, Type::Jsonb) || cast::exists(&Type::Text, &to);
                if !offered {
                    let message = format!("unknown cast from type text to type {to}");
                    return Err(WhereError::at(untyped.location, message));
                }
                self.resolver.typed_literal(untyped, &to)?
            }
            // Functions that are named like types take any text, and are printed as casts.
            Item::Typed { expr, .. } if self.canonical && expr.ty().is_text() && *expr.ty() != to => {
                Expr::Cast { arg: Box::new(expr), to, location }
            }
            Item::Typed { expr, .. } => cast_typed(expr, to, location)?,
        };
        Ok(Item::Typed { expr, location, parameter: None })
    }

    fn type_name(&self, name: Option<&TypeName>, location: i32) -> Result<Type, WhereError> {
        let Some(name) = name else { return Err(WhereError::at(location, "expression is incomplete")) };
        let parts = strings(&name.names);
        let plain = name.typmods.is_empty() && !name.setof && !name.pct_type;
        // Contract 2.2 has no casts to these; canonical SQL types its literals with them.
        let hidden = |ty: &Type| matches!(ty, Type::Numeric | Type::Bpchar | Type::Name);
        let scalar = match parts[..] {
            [name] | ["pg_catalog", name] => Type::of_name(name),
            _ => None,
        };
        let is_array = !name.arrayBounds.is_empty();
        let found = scalar.filter(|ty| plain && (self.canonical || !hidden(ty)));
        match found {
            Some(ty) if !is_array => Ok(ty),
            Some(ty) if ty.may_be_element() => Ok(Type::array_of(&ty)),
            None if parts[..] == ["bytea"] && plain && !is_array => Ok(Type::other("bytea")),
            _ => {
                let brackets = "[]".repeat(name.arrayBounds.len().min(1));
                let message = format!("unsupported type {}{brackets}", identifier(&parts));
                Err(WhereError::at(name.location, message))
            }
        }
    }

    fn bool_expr(&mut self, expr: &BoolExpr) -> Result<Item, WhereError> {
        let mut args = Vec::with_capacity(expr.args.len());
        for node in expr.args.iter().flatten() {
            let item = self.part(node)?;
            let arg = self.resolver.condition(item)?;
            // Nested chains of one kind are one chain, as the grammar has it without parentheses.
            match (expr.boolop, arg) {
                (BoolExprType::AND_EXPR, Expr::And(inner)) | (BoolExprType::OR_EXPR, Expr::Or(inner)) => {
                    args.extend(inner);
                }
                (_, arg) => args.push(arg),
            }
        }
        Ok(boolean(
            match expr.boolop {
                BoolExprType::AND_EXPR => Expr::And(args),
                BoolExprType::OR_EXPR => Expr::Or(args),
                _ => {
                    let arg = args
                        .pop()
                        .ok_or_else(|| WhereError::at(expr.location, "expression is incomplete"))?;
                    Expr::Not(Box::new(arg))
                }
            },
            expr.location,
        ))
    }

    fn null_test(&mut self, test: &NullTest) -> Result<Item, WhereError> {
        // Of a column as it is, no text is looked at.
        let (opaque, by_collation) = (self.opaque, self.resolver.by_collation);
        let plain = matches!(test.arg, Some(Node::ColumnRef(_)));
        self.opaque &= !plain;
        let item = self.optional(test.arg.as_ref(), test.location);
        self.opaque = opaque;
        self.resolver.by_collation = by_collation || (!plain && self.resolver.by_collation);
        let item = item?;
        let arg = Box::new(self.resolver.settle(item)?);
        let negated = test.nulltesttype == NullTestType::IS_NOT_NULL;
        Ok(boolean(Expr::IsNull { negated, arg }, test.location))
    }

    fn truth_test(&mut self, test: &BooleanTest) -> Result<Item, WhereError> {
        let item = self.optional(test.arg.as_ref(), test.location)?;
        let (truth, negated, name) = match test.booltesttype {
            BoolTestType::IS_TRUE => (Truth::True, false, "IS TRUE"),
            BoolTestType::IS_NOT_TRUE => (Truth::True, true, "IS NOT TRUE"),
            BoolTestType::IS_FALSE => (Truth::False, false, "IS FALSE"),
            BoolTestType::IS_NOT_FALSE => (Truth::False, true, "IS NOT FALSE"),
            BoolTestType::IS_UNKNOWN => (Truth::Unknown, false, "IS UNKNOWN"),
            _ => (Truth::Unknown, true, "IS NOT UNKNOWN"),
        };
        if let Item::Typed { expr, .. } = &item
            && *expr.ty() != Type::Bool
        {
            let message = format!("argument of {name} must be bool, not {}", expr.ty());
            return Err(WhereError::at(test.location, message));
        }
        let arg = Box::new(self.resolver.condition(item)?);
        Ok(boolean(Expr::IsTruth { truth, negated, arg }, test.location))
    }

    fn operator(&mut self, expr: &A_Expr) -> Result<Item, WhereError> {
        let (names, at) = (strings(&expr.name), expr.location);
        let operator = match names[..] {
            [operator] | ["pg_catalog", operator] => operator,
            _ => "",
        };
        let checked = match expr.kind {
            A_Expr_Kind::AEXPR_OP | A_Expr_Kind::AEXPR_LIKE | A_Expr_Kind::AEXPR_ILIKE => {
                let Some(left) = &expr.lexpr else {
                    if !calls::is_prefix(operator) {
                        return Err(unknown_operator("unary", &names, at));
                    }
                    let arg = self.optional(expr.rexpr.as_ref(), at)?;
                    return Ok(boolean(self.resolver.prefix_call(operator, arg, at)?, at));
                };
                let order = Some(left);
                let left = self.node(left)?;
                let right = self.optional(expr.rexpr.as_ref(), at)?;
                self.set_order(order);
                self.binary(operator, &names, left, right, at)
            }
            A_Expr_Kind::AEXPR_DISTINCT | A_Expr_Kind::AEXPR_NOT_DISTINCT => {
                let left = self.optional(expr.lexpr.as_ref(), at)?;
                let right = self.optional(expr.rexpr.as_ref(), at)?;
                self.resolver.distinct(expr.kind == A_Expr_Kind::AEXPR_NOT_DISTINCT, left, right, at)
            }
            A_Expr_Kind::AEXPR_IN => {
                let arg = self.optional(expr.lexpr.as_ref(), at)?;
                let elements = self.elements(expr)?;
                let membership = self.resolver.membership(arg, elements, at)?;
                Ok(if operator == "<>" { Expr::Not(Box::new(membership)) } else { membership })
            }
            A_Expr_Kind::AEXPR_BETWEEN => self.between(expr, (false, false)),
            A_Expr_Kind::AEXPR_NOT_BETWEEN => self.between(expr, (true, false)),
            A_Expr_Kind::AEXPR_BETWEEN_SYM => self.between(expr, (false, true)),
            A_Expr_Kind::AEXPR_NOT_BETWEEN_SYM => self.between(expr, (true, true)),
            A_Expr_Kind::AEXPR_OP_ANY | A_Expr_Kind::AEXPR_OP_ALL => {
                let left = self.optional(expr.lexpr.as_ref(), at)?;
                let array = self.optional(expr.rexpr.as_ref(), at)?;
                let all = expr.kind == A_Expr_Kind::AEXPR_OP_ALL;
                let known = Comparison::of_operator(operator).is_some() || is_like(operator).is_some();
                if !known && !calls::is_binary(operator) {
                    return Err(unknown_operator("binary", &names, at));
                }
                self.set_order(expr.lexpr.as_ref());
                self.resolver.quantified(all, operator, left, array, at)
            }
            kind => {
                let kind = match kind {
                    A_Expr_Kind::AEXPR_NULLIF => "AEXPR_NULLIF",
                    _ => "AEXPR_SIMILAR",
                };
                let name = identifier(&names);
                Err(WhereError::at(at, format!("expression {name} of :{kind} is not currently supported")))
            }
        }?;
        Ok(boolean(checked, at))
    }

    fn binary(
        &mut self,
        operator: &str,
        names: &[&str],
        left: Item,
        right: Item,
        at: i32,
    ) -> Result<Expr, WhereError> {
        if let Some(op) = Comparison::of_operator(operator) {
            return self.resolver.compare(op, left, right, at);
        }
        if let Some(like) = is_like(operator) {
            return self.resolver.like(like, left, right, at);
        }
        if !calls::is_binary(operator) {
            return Err(unknown_operator("binary", names, at));
        }
        self.resolver.binary_call(operator, left, right, at)
    }

    fn between(&mut self, expr: &A_Expr, how: (bool, bool)) -> Result<Expr, WhereError> {
        let arg = self.optional(expr.lexpr.as_ref(), expr.location)?;
        let mut bounds = self.elements(expr)?.into_iter();
        let (Some(low), Some(high)) = (bounds.next(), bounds.next()) else {
            return Err(WhereError::at(expr.location, "expression is incomplete"));
        };
        self.set_order(expr.lexpr.as_ref());
        self.resolver.between(how, arg, low, high, expr.location)
    }

    fn elements(&mut self, expr: &A_Expr) -> Result<Vec<Item>, WhereError> {
        match &expr.rexpr {
            Some(Node::List(list)) => self.list(list),
            _ => Err(WhereError::at(expr.location, "expression is incomplete")),
        }
    }
}

/// LIKE and its kin by operator: whether case is folded, and whether the result is negated.
pub(super) fn is_like(operator: &str) -> Option<(bool, bool)> {
    Some(match operator {
        "~~" => (false, false),
        "!~~" => (false, true),
        "~~*" => (true, false),
        "!~~*" => (true, true),
        _ => return None,
    })
}

pub(super) fn boolean(expr: Expr, location: i32) -> Item {
    Item::Typed { expr, location, parameter: None }
}

fn cast_typed(expr: Expr, to: Type, location: i32) -> Result<Expr, WhereError> {
    if *expr.ty() == to {
        return Ok(expr);
    }
    if !cast::exists(expr.ty(), &to) {
        let message = format!("unknown cast from type {} to type {to}", expr.ty());
        return Err(WhereError::at(location, message));
    }
    Ok(Expr::Cast { arg: Box::new(expr), to, location })
}

/// A number that the lexer did not take for an int4: int8 where it fits, numeric otherwise.
fn number(text: &str, location: i32) -> Result<(Spelling, Type), WhereError> {
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    let ty = if plain.parse::<i32>().is_ok() {
        Type::Int4
    } else if plain.parse::<i64>().is_ok() {
        Type::Int8
    } else {
        Type::Numeric
    };
    if decode_natural(plain.as_bytes(), &ty).is_none() {
        return Err(WhereError::at(location, format!("invalid syntax for type {ty}: {text}")));
    }
    Ok((Spelling::Number(plain), ty))
}

/// The strings of a list of names; anything else in it is left out.
pub(super) fn strings(list: &List) -> Vec<&str> {
    list.iter()
        .filter_map(|node| match node {
            Some(Node::String(text)) => Some(&**text),
            _ => None,
        })
        .collect()
}

fn unknown_operator(arity: &str, names: &[&str], at: i32) -> WhereError {
    let name = identifier(names);
    WhereError::at(at, format!("unknown {arity} operator {name}"))
}

fn unsupported_sublink(link: &SubLink) -> WhereError {
    let membership = link.subLinkType == SubLinkType::ANY_SUBLINK && link.operName.is_empty();
    WhereError::at(
        link.location,
        if membership {
            "SubLink is not supported in this context"
        } else {
            "only `value IN (SELECT ...)` sublinks are supported right now"
        },
    )
}

fn unsupported(node: &Node) -> WhereError {
    let location = match node {
        Node::A_ArrayExpr(node) => node.location,
        Node::CaseExpr(node) => node.location,
        Node::CoalesceExpr(node) => node.location,
        Node::CollateClause(node) => node.location,
        Node::GroupingFunc(node) => node.location,
        Node::MinMaxExpr(node) => node.location,
        Node::NamedArgExpr(node) => node.location,
        Node::RowExpr(node) => node.location,
        Node::SQLValueFunction(node) => node.location,
        Node::SetToDefault(node) => node.location,
        Node::XmlExpr(node) => node.location,
        Node::XmlSerialize(node) => node.location,
        _ => 0,
    };
    WhereError::at(location, format!("{} is not supported in this context", node_name(node)))
}

/// The name of a node in Postgres: that of the variant, which is what its debug output begins with.
pub(super) fn node_name(node: &Node) -> String {
    struct Name(String);
    impl Write for Name {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            self.0.push_str(&text[..end.unwrap_or(text.len())]);
            // An error ends the output: the rest of the tree is of no interest.
            if end.is_some() { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut name = Name(String::new());
    // The error is the expected end.
    let _ = write!(name, "{node:?}");
    name.0
}
