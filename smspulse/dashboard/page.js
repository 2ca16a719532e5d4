// Every few seconds the changing part is fetched; when that fails, the page says so and goes on trying.
const content = document.getElementById("content");
async function refresh() {
  try {
    const answer = await fetch("content" + location.search);
    if (!answer.ok) throw new Error(answer.status);
    content.innerHTML = await answer.text();
    document.body.classList.remove("bad");
  } catch {
    document.body.classList.add("bad");
    document.title = "smspulse: not current";
  }
}
setInterval(refresh, content.dataset.refresh * 1000);
document.querySelector("select").addEventListener("change", (event) => event.target.form.submit());
