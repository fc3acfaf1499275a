//! The constructs of XML and of SQL/JSON, which have a syntax of their own:
//! <https://www.postgresql.org/docs/current/functions-xml.html>,
//! <https://www.postgresql.org/docs/current/functions-json.html>.

use rupg_sql::nodes::{
    JsonArrayConstructor, JsonBehavior, JsonBehaviorType, JsonEncoding, JsonExprOp, JsonFormat,
    JsonFormatType, JsonFuncExpr, JsonIsPredicate, JsonObjectConstructor, JsonOutput, JsonParseExpr,
    JsonQuotes, JsonScalarExpr, JsonSerializeExpr, JsonValueExpr, JsonValueType, JsonWrapper, List, Node,
    XmlExpr, XmlExprOp, XmlOptionType, XmlSerialize, XmlStandaloneType,
};

use super::deparse::{Printed, Printer, Unprintable};
use crate::domain::quote_identifier;

impl Printer<'_> {
    pub(super) fn xml(&mut self, xml: &XmlExpr) -> Printed {
        match xml.op {
            XmlExprOp::IS_XMLCONCAT => self.call("XMLCONCAT(", &xml.args),
            XmlExprOp::IS_XMLELEMENT => {
                self.push("XMLELEMENT(NAME ");
                self.label(xml.name.as_deref())?;
                if !xml.named_args.is_empty() {
                    self.push(", XMLATTRIBUTES(");
                    self.named(&xml.named_args)?;
                    self.push(")");
                }
                self.more(&xml.args)
            }
            XmlExprOp::IS_XMLFOREST => {
                self.push("XMLFOREST(");
                self.named(&xml.named_args)?;
                self.push(")");
                Ok(())
            }
            XmlExprOp::IS_XMLPARSE => {
                let [text, whitespace] = &xml.args[..] else { return Err(Unprintable) };
                self.push("XMLPARSE(");
                self.push(document_or_content(xml.xmloption)?);
                self.optional(text.as_ref())?;
                let preserve = boolean(whitespace.as_ref())?;
                self.push(if preserve { " PRESERVE WHITESPACE)" } else { " STRIP WHITESPACE)" });
                Ok(())
            }
            XmlExprOp::IS_XMLPI => {
                self.push("XMLPI(NAME ");
                self.label(xml.name.as_deref())?;
                self.more(&xml.args)
            }
            XmlExprOp::IS_XMLROOT => self.xml_root(&xml.args),
            XmlExprOp::IS_DOCUMENT => {
                let [document] = &xml.args[..] else { return Err(Unprintable) };
                self.push("(");
                self.optional(document.as_ref())?;
                self.push(" IS DOCUMENT)");
                Ok(())
            }
            _ => Err(Unprintable),
        }
    }

    pub(super) fn xml_serialize(&mut self, xml: &XmlSerialize) -> Printed {
        self.push("XMLSERIALIZE(");
        self.push(document_or_content(xml.xmloption)?);
        self.optional(xml.expr.as_ref())?;
        self.push(" AS ");
        self.type_name(xml.typeName.as_deref().ok_or(Unprintable)?)?;
        // Older servers have no INDENT, and no NO INDENT.
        self.push(if xml.indent { " INDENT)" } else { ")" });
        Ok(())
    }

    fn xml_root(&mut self, args: &List) -> Printed {
        let [document, version, standalone] = &args[..] else { return Err(Unprintable) };
        self.push("XMLROOT(");
        self.optional(document.as_ref())?;
        self.push(", VERSION ");
        match version {
            Some(Node::A_Const(none)) if none.isnull => self.push("NO VALUE"),
            version => self.optional(version.as_ref())?,
        }
        let Some(Node::A_Const(standalone)) = standalone else { return Err(Unprintable) };
        let Some(Node::Integer(standalone)) = &standalone.val else { return Err(Unprintable) };
        self.push(match XmlStandaloneType(*standalone) {
            XmlStandaloneType::XML_STANDALONE_YES => ", STANDALONE YES)",
            XmlStandaloneType::XML_STANDALONE_NO => ", STANDALONE NO)",
            XmlStandaloneType::XML_STANDALONE_NO_VALUE => ", STANDALONE NO VALUE)",
            XmlStandaloneType::XML_STANDALONE_OMITTED => ")",
            _ => return Err(Unprintable),
        });
        Ok(())
    }

    fn label(&mut self, name: Option<&str>) -> Printed {
        self.push(&quote_identifier(name.ok_or(Unprintable)?));
        Ok(())
    }

    /// Arguments after others, and the end.
    fn more(&mut self, args: &List) -> Printed {
        for arg in args.iter() {
            self.push(", ");
            self.optional(arg.as_ref())?;
        }
        self.push(")");
        Ok(())
    }

    fn named(&mut self, args: &List) -> Printed {
        for (index, arg) in args.iter().enumerate() {
            self.push(if index == 0 { "" } else { ", " });
            let Some(Node::ResTarget(target)) = arg else { return Err(Unprintable) };
            self.optional(target.val.as_ref())?;
            if let Some(name) = target.name.as_deref() {
                self.push(" AS ");
                self.push(&quote_identifier(name));
            }
        }
        Ok(())
    }

    pub(super) fn json_object(&mut self, json: &JsonObjectConstructor) -> Printed {
        self.push("JSON_OBJECT(");
        for (index, pair) in json.exprs.iter().enumerate() {
            let Some(Node::JsonKeyValue(pair)) = pair else { return Err(Unprintable) };
            self.push(if index == 0 { "(" } else { ", (" });
            self.optional(pair.key.as_ref())?;
            self.push(") VALUE ");
            self.json_value(pair.value.as_deref())?;
        }
        if !json.exprs.is_empty() {
            self.push(on_null(json.absent_on_null));
            self.push(if json.unique { " WITH UNIQUE KEYS" } else { "" });
        }
        self.returning(json.output.as_deref())?;
        self.push(")");
        Ok(())
    }

    pub(super) fn json_array(&mut self, json: &JsonArrayConstructor) -> Printed {
        self.push("JSON_ARRAY(");
        for (index, value) in json.exprs.iter().enumerate() {
            let Some(Node::JsonValueExpr(value)) = value else { return Err(Unprintable) };
            self.push(if index == 0 { "" } else { ", " });
            self.json_value(Some(value))?;
        }
        self.push(if json.exprs.is_empty() { "" } else { on_null(json.absent_on_null) });
        self.returning(json.output.as_deref())?;
        self.push(")");
        Ok(())
    }

    pub(super) fn is_json(&mut self, json: &JsonIsPredicate) -> Printed {
        self.push("(");
        self.optional(json.expr.as_ref())?;
        self.push(match json.item_type {
            JsonValueType::JS_TYPE_ANY => " IS JSON",
            JsonValueType::JS_TYPE_OBJECT => " IS JSON OBJECT",
            JsonValueType::JS_TYPE_ARRAY => " IS JSON ARRAY",
            JsonValueType::JS_TYPE_SCALAR => " IS JSON SCALAR",
            _ => return Err(Unprintable),
        });
        self.push(if json.unique_keys { " WITH UNIQUE KEYS)" } else { ")" });
        Ok(())
    }

    pub(super) fn json_parse(&mut self, json: &JsonParseExpr) -> Printed {
        self.push("JSON(");
        self.json_value(json.expr.as_deref())?;
        self.push(if json.unique_keys { " WITH UNIQUE KEYS" } else { "" });
        self.returning(json.output.as_deref())?;
        self.push(")");
        Ok(())
    }

    pub(super) fn json_scalar(&mut self, json: &JsonScalarExpr) -> Printed {
        self.push("JSON_SCALAR(");
        self.optional(json.expr.as_ref())?;
        self.returning(json.output.as_deref())?;
        self.push(")");
        Ok(())
    }

    pub(super) fn json_serialize(&mut self, json: &JsonSerializeExpr) -> Printed {
        self.push("JSON_SERIALIZE(");
        self.json_value(json.expr.as_deref())?;
        self.returning(json.output.as_deref())?;
        self.push(")");
        Ok(())
    }

    pub(super) fn json_function(&mut self, json: &JsonFuncExpr) -> Printed {
        self.push(match json.op {
            JsonExprOp::JSON_EXISTS_OP => "JSON_EXISTS(",
            JsonExprOp::JSON_QUERY_OP => "JSON_QUERY(",
            JsonExprOp::JSON_VALUE_OP => "JSON_VALUE(",
            _ => return Err(Unprintable),
        });
        self.json_value(json.context_item.as_deref())?;
        self.push(", ");
        self.optional(json.pathspec.as_ref())?;
        for (index, argument) in json.passing.iter().enumerate() {
            let Some(Node::JsonArgument(argument)) = argument else { return Err(Unprintable) };
            self.push(if index == 0 { " PASSING " } else { ", " });
            self.json_value(argument.val.as_deref())?;
            self.push(" AS ");
            self.label(argument.name.as_deref())?;
        }
        self.returning(json.output.as_deref())?;
        self.push(match json.wrapper {
            JsonWrapper::JSW_UNSPEC => "",
            JsonWrapper::JSW_NONE => " WITHOUT WRAPPER",
            JsonWrapper::JSW_CONDITIONAL => " WITH CONDITIONAL WRAPPER",
            JsonWrapper::JSW_UNCONDITIONAL => " WITH UNCONDITIONAL WRAPPER",
            _ => return Err(Unprintable),
        });
        self.push(match json.quotes {
            JsonQuotes::JS_QUOTES_UNSPEC => "",
            JsonQuotes::JS_QUOTES_KEEP => " KEEP QUOTES",
            JsonQuotes::JS_QUOTES_OMIT => " OMIT QUOTES",
            _ => return Err(Unprintable),
        });
        self.behavior(json.on_empty.as_deref(), " ON EMPTY")?;
        self.behavior(json.on_error.as_deref(), " ON ERROR")?;
        self.push(")");
        Ok(())
    }

    fn behavior(&mut self, behavior: Option<&JsonBehavior>, when: &str) -> Printed {
        let Some(behavior) = behavior else { return Ok(()) };
        self.push(match behavior.btype {
            JsonBehaviorType::JSON_BEHAVIOR_NULL => " NULL",
            JsonBehaviorType::JSON_BEHAVIOR_ERROR => " ERROR",
            JsonBehaviorType::JSON_BEHAVIOR_EMPTY | JsonBehaviorType::JSON_BEHAVIOR_EMPTY_ARRAY => {
                " EMPTY ARRAY"
            }
            JsonBehaviorType::JSON_BEHAVIOR_TRUE => " TRUE",
            JsonBehaviorType::JSON_BEHAVIOR_FALSE => " FALSE",
            JsonBehaviorType::JSON_BEHAVIOR_UNKNOWN => " UNKNOWN",
            JsonBehaviorType::JSON_BEHAVIOR_EMPTY_OBJECT => " EMPTY OBJECT",
            JsonBehaviorType::JSON_BEHAVIOR_DEFAULT => " DEFAULT ",
            _ => return Err(Unprintable),
        });
        if behavior.btype == JsonBehaviorType::JSON_BEHAVIOR_DEFAULT {
            self.optional(behavior.expr.as_ref())?;
        }
        self.push(when);
        Ok(())
    }

    fn json_value(&mut self, value: Option<&JsonValueExpr>) -> Printed {
        let value = value.ok_or(Unprintable)?;
        self.optional(value.raw_expr.as_ref())?;
        self.format(value.format.as_deref())
    }

    fn returning(&mut self, output: Option<&JsonOutput>) -> Printed {
        let Some(output) = output else { return Ok(()) };
        self.push(" RETURNING ");
        self.type_name(output.typeName.as_deref().ok_or(Unprintable)?)?;
        self.format(output.returning.as_deref().and_then(|returning| returning.format.as_deref()))
    }

    fn format(&mut self, format: Option<&JsonFormat>) -> Printed {
        let Some(format) = format else { return Ok(()) };
        self.push(match (format.format_type, format.encoding) {
            (JsonFormatType::JS_FORMAT_DEFAULT, _) => "",
            (JsonFormatType::JS_FORMAT_JSON, JsonEncoding::JS_ENC_DEFAULT) => " FORMAT JSON",
            (JsonFormatType::JS_FORMAT_JSON, JsonEncoding::JS_ENC_UTF8) => " FORMAT JSON ENCODING UTF8",
            _ => return Err(Unprintable),
        });
        Ok(())
    }
}

fn on_null(absent: bool) -> &'static str {
    if absent { " ABSENT ON NULL" } else { " NULL ON NULL" }
}

fn document_or_content(option: XmlOptionType) -> Result<&'static str, Unprintable> {
    match option {
        XmlOptionType::XMLOPTION_DOCUMENT => Ok("DOCUMENT "),
        XmlOptionType::XMLOPTION_CONTENT => Ok("CONTENT "),
        _ => Err(Unprintable),
    }
}

/// A boolean that the grammar has written, which it casts.
fn boolean(node: Option<&Node>) -> Result<bool, Unprintable> {
    match node {
        Some(Node::TypeCast(cast)) => boolean(cast.arg.as_ref()),
        Some(Node::A_Const(constant)) => match &constant.val {
            Some(Node::Boolean(value)) if !constant.isnull => Ok(*value),
            _ => Err(Unprintable),
        },
        _ => Err(Unprintable),
    }
}
