//! Checks of the nodes beside operators: functions, arrays, subscripts, COALESCE and its kin.

use rupg_sql::nodes::{A_ArrayExpr, A_Indirection, CoalesceExpr, FuncCall, MinMaxExpr, MinMaxOp, Node};

use super::check::{Checker, boolean, strings};
use super::error::WhereError;
use super::function::Function;
use super::resolve::{Item, identifier};
use super::types::Type;

impl Checker<'_> {
    pub(super) fn coalesce(&mut self, node: &CoalesceExpr) -> Result<Item, WhereError> {
        let args = self.list(&node.args)?;
        let checked = self.resolver.common_call((Function::Coalesce, "coalesce"), args, node.location)?;
        Ok(boolean(checked, node.location))
    }

    pub(super) fn min_max(&mut self, node: &MinMaxExpr) -> Result<Item, WhereError> {
        let args = self.list(&node.args)?;
        self.set_order(node.args.first().and_then(Option::as_ref));
        let function = match node.op {
            MinMaxOp::IS_GREATEST => (Function::Greatest, "greatest"),
            _ => (Function::Least, "least"),
        };
        Ok(boolean(self.resolver.common_call(function, args, node.location)?, node.location))
    }

    /// `ARRAY[…]`; `target` is the array type that a cast around it names.
    pub(super) fn array(&mut self, node: &A_ArrayExpr, target: Option<&Type>) -> Result<Item, WhereError> {
        let mut items = Vec::with_capacity(node.elements.len());
        for element in node.elements.iter().flatten() {
            items.push(match element {
                Node::A_ArrayExpr(inner) => self.array(inner, target)?,
                element => self.node(element)?,
            });
        }
        let checked = self.resolver.array(items, target, node.location)?;
        Ok(boolean(checked, node.location))
    }

    pub(super) fn indirection(&mut self, node: &A_Indirection) -> Result<Item, WhereError> {
        let array = self.optional(node.arg.as_ref(), 0)?;
        let at = array.location();
        let mut bounds = Vec::with_capacity(node.indirection.len());
        let mut slices = 0;
        for step in node.indirection.iter().flatten() {
            let Node::A_Indices(indices) = step else {
                return Err(WhereError::at(at, "A_Indirection is not supported in this context"));
            };
            let mut bound = |node: &Option<Node>| node.as_ref().map(|node| self.node(node)).transpose();
            let (low, high) = (bound(&indices.lidx)?, bound(&indices.uidx)?);
            slices += usize::from(indices.is_slice);
            bounds.push((low, high));
        }
        if slices > 0 && slices < bounds.len() {
            // A plain subscript there means `1:n`.
            for (step, (low, _)) in node.indirection.iter().flatten().zip(&mut bounds) {
                if matches!(step, Node::A_Indices(indices) if !indices.is_slice) {
                    *low = Some(Checker::number_item("1", at)?);
                }
            }
        }
        Ok(boolean(self.resolver.subscripts(array, bounds, slices > 0, at)?, at))
    }

    pub(super) fn function(&mut self, call: &FuncCall) -> Result<Item, WhereError> {
        let refusal = unknown_function(call);
        let plain = call.agg_order.is_empty()
            && call.agg_filter.is_none()
            && call.over.is_none()
            && !call.agg_within_group
            && !call.agg_star
            && !call.agg_distinct
            && !call.func_variadic;
        let names = strings(&call.funcname);
        let name = match names[..] {
            [name] | ["pg_catalog", name] if plain => name,
            _ => return Err(refusal),
        };
        let args = self.list(&call.args)?;
        self.set_order(call.args.first().and_then(Option::as_ref));
        let found = self.resolver.function(name, args, call.location)?;
        Ok(boolean(found.ok_or(refusal)?, call.location))
    }
}

fn unknown_function(call: &FuncCall) -> WhereError {
    let aggregate = !call.agg_order.is_empty()
        || call.agg_filter.is_some()
        || call.over.is_some()
        || call.agg_within_group
        || call.agg_star
        || call.agg_distinct;
    if aggregate {
        return WhereError::at(call.location, "aggregation is not supported in this context");
    }
    if call.func_variadic {
        let message = "explicit VARIADIC function calls are not currently supported";
        return WhereError::at(call.location, message);
    }
    let name = identifier(&strings(&call.funcname));
    WhereError::at(call.location, format!("unknown or unsupported function {name}/{}", call.args.len()))
}
