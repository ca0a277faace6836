import { render } from "preact";
import { embedded } from "./api";
import { App } from "./app";
import "./style.css";

if (embedded && !location.hash) history.replaceState(null, "", `#${embedded.start}`);
dispatchEvent(new HashChangeEvent("hashchange"));
render(<App />, document.getElementById("app")!);
