// The page that browser.mjs shows: lists of rows by useShape, which follow what the test asks for.

import { useShape } from "@electric-sql/react";
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

const report = (event, rest = {}) =>
  fetch("/report", { method: "POST", body: JSON.stringify({ event, ...rest }) });

const options = (where) => ({
  url: window.SHAPE_URL,
  params: { table: "items", ...(where ? { where } : {}) },
});

function Items({ name, where }) {
  const { data, isLoading, isError, error } = useShape(options(where));
  useEffect(() => {
    const rows = [...document.querySelectorAll(`#${name} li`)].map((item) => ({ ...item.dataset }));
    report("list", { name, where: where ?? null, rows, isLoading, isError, error: String(error) });
  });
  return (
    <ul id={name}>
      {data.map(({ id, title }) => <li key={String(id)} data-id={String(id)} data-title={title}>{title}</li>)}
    </ul>
  );
}

const length = ({ data }) => data.length;

function Count() {
  const count = useShape({ ...options(), selector: length });
  useEffect(() => void report("count", { count }));
  return <p>{count}</p>;
}

function App() {
  const [shown, setShown] = useState({ where: undefined, twice: true });
  useEffect(() => {
    const commands = new EventSource("/commands");
    commands.onmessage = ({ data }) => setShown(JSON.parse(data));
    return () => commands.close();
  }, []);
  return (
    <>
      <Items name="first" where={shown.where} />
      {shown.twice && <Items name="second" />}
      <Count />
    </>
  );
}

window.addEventListener("error", ({ message }) => report("page error", { message }));
createRoot(document.getElementById("root")).render(<App />);
