// A job file from the disk goes into the text field; a job is sent once.

const file = document.getElementById("file");
const job = document.getElementById("job");
file.parentElement.hidden = false;
file.addEventListener("change", async () => {
  if (file.files.length) job.value = await file.files[0].text();
});
document.getElementById("submit").addEventListener("submit", () => {
  document.getElementById("send").disabled = true;
  document.getElementById("waiting").textContent = "Checking the job, its data and its model…";
});
addEventListener("pageshow", () => {
  document.getElementById("send").disabled = false;
  document.getElementById("waiting").textContent = "";
});
